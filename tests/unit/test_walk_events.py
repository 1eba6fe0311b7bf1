"""The walk on kernels made up here, against event lists worked out by hand."""

from __future__ import annotations

import pytest

from memory.walk import WalkRules, walk_segment
from suite.operators import Array, DType, Kernel, Region, Size, Weight
from suite.record import Component
from tests.unit.made_up import array, deltas, operator, segment

pytestmark = pytest.mark.unit


def test_a_tensor_dies_with_its_last_reader_unless_it_is_kept() -> None:
    """x(10) -f-> y(20) -g-> z(30); g keeps y, nobody keeps x. x goes when the caller lets go, at the end."""
    x, y, z = array("x", 10), array("y", 20), array("z", 30)
    walk = walk_segment(
        segment(
            Kernel("f", (x,), (y,), (), (x,)),
            Kernel("g", (y,), (z,), (y,), (y,), forward_scratch=7, backward_scratch=9),
            inputs=(x,), output=z,
        ),
        WalkRules(),
    )  # fmt: skip
    forward, backward = deltas(walk)
    assert forward == [80, 120, 7, -7, -40]
    # g: dy(80) beside 9 of scratch, then y and dz go; f: dx(40), then dy goes
    assert backward == [80, 9, -9, -80, -120, 40, -80]
    assert (walk.forward.peak, walk.forward.net) == (207, 160)
    assert (walk.backward.peak, walk.backward.net) == (89, -160)


def test_what_nobody_keeps_is_freed_in_the_forward_pass() -> None:
    x, y, z = array("x", 1), array("y", 2), array("z", 3)
    walk = walk_segment(segment(Kernel("f", (x,), (y,)), Kernel("g", (y,), (z,)), inputs=(x,), output=z), WalkRules())
    assert deltas(walk)[0] == [8, 12, -8, -4]


@pytest.mark.parametrize(
    ("through_view", "expected"),
    [
        # g gives dx; the output's gradient has been read by both and goes after f; f's dx is added in place, and freed
        (False, [4, 4, -4, -4]),
        # g's dx came through a view: a third tensor takes the sum, and both go
        (True, [4, 4, -4, 4, -4, -4]),
    ],
)
def test_two_gradients_meet(through_view: bool, expected: list[int]) -> None:
    """x feeds f and g, their outputs are joined by an add, which passes its own gradient on to both."""
    x, a, b, out = array("x", 1), array("a", 1), array("b", 1), array("out", 1)
    walk = walk_segment(
        segment(
            Kernel("f", (x,), (a,), (), (x,), through_view=through_view),
            Kernel("g", (x,), (b,), (), (x,), through_view=through_view),
            Kernel("add", (a, b), (out,), passes=(a, b)),
            inputs=(x,), output=out,
        ),
        WalkRules(),
    )  # fmt: skip
    assert deltas(walk)[1] == expected


def test_a_weights_gradient_stays_or_is_added_and_freed() -> None:
    x, out = array("x", 1), array("out", 1)
    weight = Weight("w", (Size("n", 5),), DType.FP32)
    parts = segment(Kernel("f", (x, weight), (out,), (x,), (weight, x)), inputs=(x,), output=out)
    first = walk_segment(parts, WalkRules())
    assert deltas(first)[1] == [20, 4, -4, -4]
    kept = {label.component: nbytes for label, nbytes in first.backward.change.items()}
    assert kept[Component.GRADIENTS] == 20
    second = walk_segment(parts, WalkRules(accumulate=True))
    assert deltas(second)[1] == [20, 4, -4, -4, -20]


def test_a_tied_weights_gradient_waits_for_its_owner() -> None:
    """The head's gradient came through a view, so the owner's is added to it in a third tensor."""
    x, hidden = array("x", 1), array("hidden", 1)
    tied = Weight("head.weight", (Size("n", 5),), DType.FP32, tied_to="embedding.weight")
    head = segment(Kernel("f", (x, tied), (hidden,), (), (tied, x), through_view=True), inputs=(x,), output=hidden)
    walk = walk_segment(head, WalkRules(accumulate=True))
    assert walk.waiting == {"embedding.weight": True}
    assert 20 in deltas(walk)[1]
    assert -20 not in deltas(walk)[1]
    own = Weight("embedding.weight", (Size("n", 5),), DType.FP32)
    owner = segment(Kernel("e", (x, own), (hidden,), (), (own,)), inputs=(x,), output=hidden)
    assert deltas(walk_segment(owner, WalkRules(awaiting={"embedding.weight": True})))[1] == [20, -4, 20, -20, -20]
    assert deltas(walk_segment(owner, WalkRules(awaiting={"embedding.weight": False})))[1] == [20, -4, -20]


def test_a_region_is_rerun_and_stops_at_the_last_tensor_it_needs() -> None:
    """x -f-> y -g-> z, rerun: forward keeps x alone. In backward f runs again; g is not run: y is all it would keep."""
    x, y, z = array("x", 10), array("y", 20), array("z", 30)
    inner = (
        operator(Kernel("f", (x,), (y,), (x,), (x,))),
        operator(Kernel("g", (y,), (z,), (y,), (y,))),
    )
    walk = walk_segment(segment(Region("block", inner, (x,), (z,)), inputs=(x,), output=z), WalkRules())
    forward, backward = deltas(walk)
    assert forward == [80, 120, -80]  # y dies inside; x is held for the rerun
    # rerun: y(80). g's backward: dy(80), y and dz go. f's: dx(40), dy goes. Then the region lets go of x.
    assert backward == [80, 80, -80, -120, 40, -80, -40]


def test_autocast_casts_a_weight_once_and_holds_the_copy_until_it_ends() -> None:
    x, out = array("x", 1), array("out", 1)
    weight = Weight("w", (Size("n", 6),), DType.FP32)
    copy = Array("copy", weight.shape, DType.BF16)
    parts = segment(
        Kernel("cast", (weight,), (copy,), gradients=(weight,), is_weight_cast=True),
        Kernel("f", (x, copy), (out,), (), (copy, x)),
        inputs=(x,), output=out,
    )  # fmt: skip
    walk = walk_segment(parts, WalkRules())
    assert deltas(walk)[0] == [12, 4, -4]  # the copy outlives its last reader ...
    assert [event.nbytes for event in walk.uncache.events] == [-12]  # ... and goes when autocast ends
    assert deltas(walk)[1] == [12, 4, -4, 24, -12]  # dcopy, dx; then the fp32 gradient, and dcopy goes
