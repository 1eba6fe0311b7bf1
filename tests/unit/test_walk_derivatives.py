"""Custom functions on kernels made up here: a backward pass that is kernels itself."""

from __future__ import annotations

import pytest

from memory.walk import WalkRules, walk_segment
from suite.operators import Derivative, Kernel
from tests.unit.made_up import array, deltas, region, segment

pytestmark = pytest.mark.unit


def function(gradient_is_view: bool = False) -> Kernel:
    """x(40) -> y(20): backward receives 12 in passing beside 5 of workspace, makes sums(24), then x's gradient(40), or
    finds it in them."""
    part, sums, dx = array("part", 3), array("sums", 6), array("dx", 10)
    kernels = (
        Kernel("receive", (), (part,), forward_scratch=5),
        Kernel("sum", (part,), (sums,)),
        Kernel("cast", (sums,), (dx,), is_view=gradient_is_view),
    )
    x, y = array("x", 10), array("y", 5)
    return Kernel("f", (x,), (y,), (x,), (x,), derivative=Derivative(kernels, (dx,)))


def test_what_a_derivative_makes_dies_with_its_last_reader() -> None:
    """part(12), 5 and back, sums(24), part goes, dx(40), sums go; then what was kept, x, and y's gradient."""
    kernel = function()
    walk = walk_segment(segment(kernel, inputs=kernel.reads, output=kernel.writes[0]), WalkRules())
    assert deltas(walk) == ([20], [12, 5, -5, 24, -12, 40, -24, -40, -20])


def test_a_gradient_that_is_a_view_keeps_what_it_is_a_view_of() -> None:
    """The sums are the gradient: they are not let go."""
    kernel = function(gradient_is_view=True)
    walk = walk_segment(segment(kernel, inputs=kernel.reads, output=kernel.writes[0]), WalkRules())
    assert deltas(walk)[1] == [12, 5, -5, 24, -12, -40, -20]


def test_gradients_that_meet_are_added() -> None:
    """y = f(x), z = g(x, y): g's gradient of x is there first, f's is added to it in place and freed."""
    kernel = function()
    (x,), (y,) = kernel.reads, kernel.writes
    z = array("z", 4)
    walk = walk_segment(segment(kernel, Kernel("g", (x, y), (z,), (), (x, y)), inputs=(x,), output=z), WalkRules())
    # g: dx(40), dy(20), dz goes; f's own; x was kept, its inputs' gradient goes, and its dx with the sum made
    assert deltas(walk)[1] == [40, 20, -16, 12, 5, -5, 24, -12, 40, -24, -40, -20, -40]


def test_a_view_kept_across_a_region_keeps_what_it_is_a_view_of_under_its_name() -> None:
    """x -[f -> y, a view of it z]-> z, which the next kernel keeps: y counts as kept for it."""
    x, y, z, out = array("x", 1), array("y", 2), array("z", 2), array("out", 3)
    body = region(
        Kernel("f", (x,), (y,), (), (x,)), Kernel("view", (y,), (z,), (), (y,), is_view=True),
        inputs=(x,), outputs=(z,),
    )  # fmt: skip
    walk = walk_segment(segment(body, Kernel("g", (z,), (out,), (z,), (z,)), inputs=(x,), output=out), WalkRules())
    assert {event.label.source for event in walk.forward.events if event.label.name == "y"} == {
        "kept for the derivative of g (torch derivatives.yaml)"
    }
