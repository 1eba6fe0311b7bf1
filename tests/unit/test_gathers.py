"""FSDP2's gathers and reductions, event by event, on a unit small enough to add up by hand."""

from __future__ import annotations

from itertools import accumulate

import pytest

from memory.events import gradient_label
from memory.gathers import Gathers
from memory.units import Exchange, Micro, Parameter, Unit
from suite.record import Component
from suite.tape import Backend

pytestmark = pytest.mark.unit

#: over two ranks: 8 elements that halve, and 3 rows of 1 that do not: padded to 4
UNIT = Unit((Parameter(8, 4, 2), Parameter(3, 2, 2)))
GRADIENT = gradient_label(Component.TRANSIENTS, "gradients", 2)


def exchange(backend: Backend = Backend.CPU, reduce_bytes: int = 4, replicas: int = 1, to: int = 0) -> Exchange:
    """bf16 over fp32 masters."""
    return Exchange(2, reduce_bytes, replicas > 1, to, is_offloaded=False, backend=backend, master_bytes=4)


def heights(gathers: Gathers, start: int = 0) -> tuple[int, int]:
    """(highest level, level at the end) of what was written since the last look."""
    levels = list(accumulate((event.nbytes for event in gathers.take().events), initial=start))
    return max(levels), levels[-1]


def test_a_gather_holds_shard_output_and_gloos_copy_then_output_and_parameters() -> None:
    """12 padded elements of 2 bytes are gathered: 24; the cast shard is 12."""
    gathers = Gathers(exchange(), Micro(), GRADIENT)
    gathers.fetch(UNIT)
    assert heights(gathers) == (12 + 24 + 24, 24)
    gathers.use_in_backward(UNIT)
    assert heights(gathers, 24) == (24 + 24, 24)
    on_nccl = Gathers(exchange(Backend.CUDA), Micro(), GRADIENT)
    on_nccl.fetch(UNIT)
    assert heights(on_nccl) == (12 + 24, 24)


def test_a_unit_resharded_to_one_of_two_ranks_is_gathered_from_what_it_kept() -> None:
    """Four ranks back to groups of two: 8 and 2 padded elements a rank, 40 gathered, 20 of them kept, 2 bytes each."""
    unit = Unit((Parameter(32, 8, 4), Parameter(5, 2, 4)))
    gathers = Gathers(exchange(to=2), Micro(), GRADIENT)
    gathers.use_in_forward(unit)
    gathers.take()
    gathers.reshard_after_forward(unit)
    assert heights(gathers, 80) == (80 + 32, 40)  # the first parameter's part is copied before its whole goes
    gathers.fetch(unit, in_backward=True)
    assert heights(gathers) == (40 + 80 + 80, 80)


def test_new_gradients_are_cast_and_added_to_the_whole_ones_one_by_one() -> None:
    """On the CPU each is cast to fp32 beside both: 8 elements of 4 bytes at most. 11 of 2 bytes go, and 24 gathered."""
    gathers = Gathers(exchange(), Micro(reduces=False, has_whole=True), GRADIENT)
    gathers.reduce(UNIT)
    assert heights(gathers) == (32, -22 - 24)
    on_cuda = Gathers(exchange(Backend.CUDA), Micro(reduces=False, has_whole=True), GRADIENT)
    on_cuda.reduce(UNIT)
    assert heights(on_cuda) == (0, -22 - 24)


def test_the_first_whole_gradients_are_kept_in_the_type_they_are_reduced_in() -> None:
    """11 elements: 44 bytes come, 22 go; and 24 gathered went before."""
    gathers = Gathers(exchange(), Micro(reduces=False), GRADIENT)
    gathers.reduce(UNIT)
    assert heights(gathers)[1] == 44 - 22 - 24
    kept = Gathers(exchange(reduce_bytes=2), Micro(reduces=False), GRADIENT)
    kept.reduce(UNIT)
    assert heights(kept)[1] == -24


def test_a_reduction_leaves_the_shard_and_its_input() -> None:
    """12 padded elements of 4 bytes are the input, 6 the shard; the input goes when the backward pass ends."""
    gathers = Gathers(exchange(), Micro(), GRADIENT)
    gathers.reduce(UNIT)
    assert heights(gathers)[1] == 48 + 24 - 22 - 24
    gathers.end_backward()
    assert heights(gathers) == (0, -48)


@pytest.mark.parametrize(("replicas", "held"), [(1, 0), (2, 12)])
def test_shards_all_reduced_in_bf16_are_held_until_the_end(replicas: int, held: int) -> None:
    """6 elements of 2 bytes beside their fp32 cast: FSDP2 keeps an all-reduce's tensor, not a reduce-scatter's."""
    gathers = Gathers(exchange(reduce_bytes=2, replicas=replicas), Micro(), GRADIENT)
    gathers.reduce(UNIT)
    assert heights(gathers)[1] == 24 + held + 24 - 22 - 24
    gathers.end_backward()
    assert heights(gathers) == (0, -24 - held)
