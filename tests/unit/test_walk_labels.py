"""What the walk's bytes are booked as: kept, transient, or a gradient that stays."""

from __future__ import annotations

import pytest

from memory.walk import WalkRules, walk_segment
from suite.operators import DType, Kernel, Segment
from suite.record import Component
from tests.unit.made_up import array, by_component, deltas, region, segment, weight

pytestmark = pytest.mark.unit

ACTIVATIONS, TRANSIENTS, GRADIENTS = Component.ACTIVATIONS, Component.TRANSIENTS, Component.GRADIENTS


def test_what_a_derivative_reads_is_an_activation_and_the_rest_is_transient() -> None:
    x, y, z = array("x", 1), array("y", 2), array("z", 3)
    walk = walk_segment(
        segment(Kernel("f", (x,), (y,), (y,)), Kernel("g", (y,), (z,)), inputs=(x,), output=z), WalkRules()
    )
    assert by_component(walk.forward, 1) == {ACTIVATIONS: 8}
    walk = walk_segment(segment(Kernel("f", (x,), (y,)), Kernel("g", (y,), (z,)), inputs=(x,), output=z), WalkRules())
    assert by_component(walk.forward, 1) == {TRANSIENTS: 8}


def test_keeping_a_view_keeps_what_it_shows() -> None:
    """y's second half is kept: y is."""
    x, y, half, z = array("x", 1), array("y", 4), array("half of y", 2), array("z", 3)
    walk = walk_segment(
        segment(
            Kernel("f", (x,), (y,)),
            Kernel("slice", (y,), (half,), is_view=True),
            Kernel("g", (half,), (z,), (half,)),
            inputs=(x,), output=z,
        ),
        WalkRules(),
    )  # fmt: skip
    assert deltas(walk)[0] == [16, 12, -4]  # no event for the view; y stays
    assert by_component(walk.forward, 1) == {ACTIVATIONS: 16}


@pytest.mark.parametrize(("kept", "booked"), [(ACTIVATIONS, ACTIVATIONS), (Component.LOSS, TRANSIENTS)])
@pytest.mark.parametrize("is_rerun", [False, True])
def test_a_cached_copy_that_nobody_keeps_outlives_the_blocks_but_not_the_loss(
    kept: Component, booked: Component, is_rerun: bool
) -> None:
    """A bias's copy, as autocast makes one: no derivative reads it."""
    x, out, copy = array("x", 1), array("out", 1), array("copy", 6, DType.BF16)
    owner = weight("bias", 6)
    kernels = (
        Kernel("cast", (owner,), (copy,), gradients=(owner,), is_weight_cast=True),
        Kernel("f", (x, copy), (out,), (x,), (x, copy)),
    )
    inside = (region(*kernels, inputs=(x,), outputs=(out,)),) if is_rerun else kernels
    walk = walk_segment(segment(*inside, inputs=(x,), output=out), WalkRules(kept))
    assert by_component(walk.forward, 1) == {booked: 12}
    assert by_component(walk.uncache) == {booked: -12}


def readers(count: int, through_view: bool, tied_to: str | None = None) -> Segment:
    """One weight of 5 elements, read by so many kernels whose outputs are added up."""
    x, shared = array("x", 1), weight("w", 5, tied_to)
    outs = [array(f"out {place}", 1) for place in range(count)]
    total = array("total", 1)
    kernels = [Kernel("f", (x, shared), (out,), (), (shared,), through_view=through_view) for out in outs]
    return segment(*kernels, Kernel("add", tuple(outs), (total,), passes=tuple(outs)), inputs=(x,), output=total)


@pytest.mark.parametrize(
    ("count", "through_view", "expected"),
    [
        # one reader: its gradient is the weight's, view or not
        (1, True, [{GRADIENTS: 20}]),
        (1, False, [{GRADIENTS: 20}]),
        # no views: the second is added to the first, and is gone
        (2, False, [{GRADIENTS: 20}, {GRADIENTS: 20, TRANSIENTS: 20}, {GRADIENTS: 20}]),
        # views: a third tensor takes the sum of two, and is the gradient; a third reader's is added to it
        (2, True, [{TRANSIENTS: 20}, {TRANSIENTS: 40}, {TRANSIENTS: 40, GRADIENTS: 20},
                   {TRANSIENTS: 20, GRADIENTS: 20}, {GRADIENTS: 20}]),
        (3, True, [{TRANSIENTS: 20}, {TRANSIENTS: 40}, {TRANSIENTS: 40, GRADIENTS: 20},
                   {TRANSIENTS: 20, GRADIENTS: 20}, {GRADIENTS: 20}, {TRANSIENTS: 20, GRADIENTS: 20}, {GRADIENTS: 20}]),
    ],
)  # fmt: skip
def test_only_the_last_word_on_a_weight_is_its_gradient(
    count: int, through_view: bool, expected: list[dict[Component, int]]
) -> None:
    levels, level = [], {GRADIENTS: 0, TRANSIENTS: 0}
    for event in walk_segment(readers(count, through_view), WalkRules()).backward.events:
        if abs(event.nbytes) == 20:  # the others are the output's gradient
            level[event.label.component] += event.nbytes
            levels.append({component: nbytes for component, nbytes in level.items() if nbytes})
    assert levels == expected


@pytest.mark.parametrize(
    ("through_view", "left"), [(True, {TRANSIENTS: 20 - 4}), (False, {GRADIENTS: 20, TRANSIENTS: -4})]
)
def test_a_tied_head_leaves_a_gradient_only_if_its_owner_will_add_to_it(
    through_view: bool, left: dict[Component, int]
) -> None:
    """Through a view it will be replaced by the sum; both segments must call it the same."""
    head = walk_segment(readers(1, through_view, tied_to="embedding"), WalkRules())
    assert head.waiting == {"embedding": through_view}
    assert by_component(head.backward) == left  # the output's gradient, 4 bytes, went
    x, own, out = array("x", 1), weight("embedding", 5), array("out", 1)
    owner = segment(Kernel("e", (x, own), (out,), (), (own,)), inputs=(x,), output=out)
    both = by_component(head.backward)
    for component, nbytes in by_component(walk_segment(owner, WalkRules(awaiting=head.waiting)).backward).items():
        both[component] = both.get(component, 0) + nbytes
    assert both == {GRADIENTS: 20, TRANSIENTS: -8}


def test_with_gradients_already_there_new_ones_are_transient() -> None:
    walk = walk_segment(readers(1, through_view=False), WalkRules(accumulate=True))
    assert by_component(walk.backward, 1) == {TRANSIENTS: 20}
    assert walk.backward.net == -4  # the output's gradient; the weight's was added and freed


def test_a_strategy_that_reduces_gradients_books_them_as_it_says() -> None:
    rules = WalkRules(gradients=TRANSIENTS, gradient_name="before they are reduced")
    walk = walk_segment(readers(1, through_view=False), rules)
    assert walk.backward.events[0].label.name == "before they are reduced"
    assert by_component(walk.backward, 1) == {TRANSIENTS: 20}
