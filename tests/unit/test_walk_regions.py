"""Checkpointed regions on kernels made up here: what is rerun, when, and what lives meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memory.walk import WalkRules, walk_segment
from suite.operators import DType, Kernel
from suite.record import Component
from tests.unit.made_up import array, by_component, deltas, region, segment, weight

pytestmark = pytest.mark.unit


def test_a_rerun_begins_with_the_first_derivative_that_reads_a_kept_tensor() -> None:
    """x -f-> y -add-> z, where add narrows its gradient and keeps nothing: that gradient is there before y is again."""
    x, y, z = array("x", 10), array("y", 20), array("z", 30)
    walk = walk_segment(
        segment(
            region(
                Kernel("f", (x,), (y,), (x, y), (x,)),
                Kernel("add", (y,), (z,), gradients=(y,), backward_scratch=5),
                inputs=(x,), outputs=(z,),
            ),
            inputs=(x,), output=z,
        ),
        WalkRules(),
    )  # fmt: skip
    forward, backward = deltas(walk)
    assert forward == [80, 120, -80]
    # add: dy(80) beside 5 of scratch, dz goes; then f is run again: y(80); f: dx(40), y and dy go; x is let go
    assert backward == [80, 5, -5, -120, 80, 40, -80, -80, -40]


def test_a_frame_that_never_returned_holds_its_tensors_to_the_end_of_the_rerun() -> None:
    """x -f-> y -g-> z -h-> out; h alone keeps something, z. A frame around g and h names y until it returns, after h:
    the rerun stops at z, inside the frame, so y lives as long as the rerun."""
    x, y, z, out = array("x", 1), array("y", 2), array("z", 3), array("out", 4)
    kernels = (
        Kernel("f", (x,), (y,), gradients=(x,)),
        Kernel("g", (y,), (z,), gradients=(y,)),
        Kernel("h", (z,), (out,), (z,), (z,)),
    )
    returns = Kernel("release", (y,))
    alone, framed = (
        walk_segment(segment(region(*body, inputs=(x,), outputs=(out,)), inputs=(x,), output=out), WalkRules())
        for body in (kernels, (*kernels, returns))
    )
    # forward: y dies with g, or with its frame
    assert deltas(alone)[0] == [8, 12, -8, 16, -12]
    assert deltas(framed)[0] == [8, 12, 16, -12, -8]
    # rerun: y(8), z(12); then h's derivative: dz(12), z and dout go, and x with the last tensor kept inside; dy(8), dz
    # goes; dx(4), dy goes
    derivatives = [12, -12, -16, -4, 8, -12, 4, -8]
    assert deltas(alone)[1] == [8, 12, -8, *derivatives]
    assert deltas(framed)[1] == [8, 12, -8, *derivatives]
    assert [event.label.name for event in framed.backward.events[:3]] == [
        "recomputed y",
        "recomputed z",
        "recomputed y",
    ]


def test_a_frames_tensor_outlives_later_ones_of_the_rerun() -> None:
    """As above with one more kernel in the frame: y outlives what g2 makes and drops."""
    x, y, z, out = array("x", 1), array("y", 2), array("z", 3), array("out", 4)
    body = (
        Kernel("f", (x,), (y,), gradients=(x,)),
        Kernel("g", (y,), (z,), gradients=(y,)),
        Kernel("h", (z,), (out,), (z, out), (z,)),
        Kernel("release", (y,)),
    )
    walk = walk_segment(segment(region(*body, inputs=(x,), outputs=(out,)), inputs=(x,), output=out), WalkRules())
    # y(8), z(12) and, because h keeps it, out(16); the frame's y goes last
    assert deltas(walk)[1][:4] == [8, 12, 16, -8]


def test_nothing_is_rerun_where_nothing_is_kept() -> None:
    """x -f-> y, f keeps nothing: its derivative needs no forward pass."""
    x, y = array("x", 1), array("y", 2)
    body = region(Kernel("f", (x,), (y,), gradients=(x,)), inputs=(x,), outputs=(y,))
    assert deltas(walk_segment(segment(body, inputs=(x,), output=y), WalkRules()))[1] == [4, -8, -4]


def test_a_copy_of_a_weight_is_cached_across_a_region_and_made_again_in_its_rerun() -> None:
    """In forward autocast's cache holds the copy, though the region keeps nothing; the rerun has a cache of its own."""
    x, out, copy = array("x", 1), array("out", 1), array("copy", 6, DType.BF16)
    owner = weight("w", 6)
    body = region(
        Kernel("cast", (owner,), (copy,), gradients=(owner,), is_weight_cast=True),
        Kernel("f", (x, copy), (out,), (copy,), (copy, x)),
        inputs=(x,), outputs=(out,),
    )  # fmt: skip
    walk = walk_segment(segment(body, inputs=(x,), output=out), WalkRules())
    assert deltas(walk)[0] == [12, 4]
    assert [event.nbytes for event in walk.uncache.events] == [-12]
    # copy again(12) and not f; f: dcopy(12), dx(4), the copy and dout go, and x with the last tensor kept inside; then
    # the cast, which keeps nothing: dw(24), dcopy goes
    assert deltas(walk)[1] == [12, 12, 4, -12, -4, -4, 24, -12]


def test_regions_are_rerun_one_at_a_time_the_last_first() -> None:
    """x -[f]-> y -[g]-> z: y is kept for the second region's rerun, x for the first's."""
    x, y, z = array("x", 1), array("y", 2), array("z", 3)
    walk = walk_segment(
        segment(
            region(Kernel("f", (x,), (y,), (y,), (x,)), inputs=(x,), outputs=(y,)),
            region(Kernel("g", (y,), (z,), (z,), (y,)), inputs=(y,), outputs=(z,)),
            inputs=(x,), output=z,
        ),
        WalkRules(),
    )  # fmt: skip
    assert deltas(walk)[0] == [8, 12]
    # second: z again(12), dy(8), z and dz go, y is let go; first: y again(8), dx(4), y and dy go, x is let go
    assert deltas(walk)[1] == [12, 8, -12, -12, -8, 8, 4, -8, -8, -4]


def test_what_a_region_keeps_is_not_made_again() -> None:
    """x -f-> y -g-> z -h-> out, y kept: the rerun finds y and makes z alone, beside what f prepares in passing."""
    x, y, z, out = array("x", 1), array("y", 2), array("z", 3), array("out", 4)
    kernels = (
        Kernel("f", (x,), (y,), (x,), (x,), forward_scratch=7, prepared_scratch=5),
        Kernel("g", (y,), (z,), (y,), (y,)),
        Kernel("h", (z,), (out,), (z,), (z,)),
    )
    body = region(*kernels, inputs=(x,), outputs=(out,))
    again, kept = (
        walk_segment(segment(part, inputs=(x,), output=out), WalkRules()) for part in (body, replace(body, kept=(y,)))
    )
    assert deltas(again)[0] == [8, 7, -7, 12, -8, 16, -12]
    assert deltas(kept)[0] == [8, 7, -7, 12, 16, -12]
    # z(12); h: dz(12), z and dout go; g: dy(8), the kept y and dz go; f: dx(4), dy and x go
    derivatives = [12, -12, -16, 8, -8, -12, 4, -8, -4]
    assert sorted(deltas(again)[1]) == sorted([8, 7, -7, 12, *derivatives])
    assert sorted(deltas(kept)[1]) == sorted([5, -5, 12, *derivatives])
    assert deltas(kept)[1][:4] == [5, -5, 12, 12]
    assert by_component(kept.forward) == {Component.ACTIVATIONS: 8 + 16}


def test_what_a_rerun_stops_short_of_goes_with_the_regions_inputs() -> None:
    """x -f-> y -g-> z, z kept and needed by nobody: the rerun stops before g, whose y is there."""
    x, y, z, out = array("x", 1), array("y", 2), array("z", 3), array("out", 4)
    body = region(
        Kernel("f", (x,), (y,), (x,), (x,)),
        Kernel("g", (y,), (z,), (y,), (y,)),
        Kernel("h", (z,), (out,), gradients=(z,)),
        inputs=(x,), outputs=(out,),
    )  # fmt: skip
    walk = walk_segment(segment(replace(body, kept=(z,)), inputs=(x,), output=out), WalkRules())
    assert deltas(walk)[0] == [8, 12, -8, 16]
    # h: dz(12), dout goes; then y(8) again; g: dy(8), y and dz go; f: dx(4), then x, z and dy go
    assert deltas(walk)[1][:6] == [12, -16, 8, 8, -8, -12]
    assert sorted(deltas(walk)[1][6:]) == [-12, -8, -4, 4]
