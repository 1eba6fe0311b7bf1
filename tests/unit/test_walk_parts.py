"""Gradients of parts of weights, which autograd wraps as DTensors, against event lists worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memory.walk import WalkRules, walk_segment
from suite.operators import TO_LOCAL, Kernel
from tests.unit.made_up import array, deltas, segment, weight

pytestmark = pytest.mark.unit

PART = replace(weight("w", 6), is_part=True)
LOCAL = Kernel(TO_LOCAL, (PART,))


def test_gradients_of_parts_are_never_summed_in_place() -> None:
    """x -f-> a -g-> b -h-> out, all three read the part (24 bytes)."""
    x, a, b, out = array("x", 1), array("a", 1), array("b", 1), array("out", 1)
    walk = walk_segment(
        segment(
            LOCAL, Kernel("f", (x, PART), (a,), (), (PART, x)),
            LOCAL, Kernel("g", (a, PART), (b,), (), (PART, a)),
            LOCAL, Kernel("h", (b, PART), (out,), (), (PART, b)),
            inputs=(x,), output=out,
        ),
        WalkRules(),
    )  # fmt: skip
    # each: dw(24), the input's gradient(4), the output's goes; from the second on a third tensor takes the sum
    first, again = [24, 4, -4], [24, 4, -4, 24, -24, -24]
    assert deltas(walk)[1] == [*first, *again, *again]


def test_a_parts_gradient_arrives_where_the_part_was_taken_out_of_its_tensor() -> None:
    """x is copied after that, so the copy's derivative comes first; the old gradient takes the new one, and it goes."""
    x, y, out = array("x", 1), array("y", 1), array("out", 2)
    walk = walk_segment(
        segment(
            LOCAL, Kernel("clone", (x,), (y,), (), (x,)), Kernel("f", (y, PART), (out,), (), (PART, y)),
            inputs=(x,), output=out,
        ),
        WalkRules(accumulate=True),
    )  # fmt: skip
    # f: dw(24), dy(4), dout goes; the copy: dx(4), dy goes; then dw is added and goes
    assert deltas(walk)[1] == [24, 4, -8, 4, -4, -24]
