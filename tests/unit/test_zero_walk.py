"""What ZeRO's stages hold and allocate, by hand and by the figure of its paper."""

from __future__ import annotations

from typing import Any

import pytest

from memory.estimate import MemoryModel, estimate_memory
from memory.zero_buckets import joined
from memory.zero_rank import Rank
from suite.case import Case, case_from
from suite.record import STATE, Component, MemoryEstimate, Moment
from suite.tape import Backend

pytestmark = pytest.mark.unit

#: every parameter is a multiple of 4 elements, and each half of the matrices ends where a matrix ends: 32 8 4 4 8 ...
EVEN = {"layers": 2, "hidden": 8, "heads": 2, "kv_heads": 1, "ffn": 16, "vocab": 32, "max_positions": 8}
MIB = 2**20


def case_of(device: str = "h100-sxm", **layout: Any) -> Case:
    """A case of two micro-batches in bf16 with AdamW."""
    workload = {"seq_len": 8, "micro_batches": 2, "precision": "bf16-mixed"}
    return case_from({"model": EVEN, "layout": layout, "workload": workload, "cluster": {"device": device}})


def psi(case: Case) -> int:
    """Parameters of the model."""
    return sum(placed.segment.parameters for placed in MemoryModel(case).ledger.segments)


def states(memory: MemoryEstimate, moment: Moment = Moment.AFTER_BACKWARD) -> int:
    """Bytes of parameters, gradients and optimizer state."""
    return sum(memory.by_moment[moment].get(component, 0) for component in STATE if component is not Component.BUFFERS)


def named(memory: MemoryEstimate, name: str, moment: Moment) -> int:
    """Bytes of the terms of that name at a moment."""
    return sum(int(term.value) for term in memory.terms if term.moment is moment and term.formula.startswith(name))


def test_figure_1_of_the_paper() -> None:
    """arXiv:1910.02054, figure 1, K = 12: 16 psi, 4 psi + 12 psi/N, 2 psi + 14 psi/N, 16 psi/N. Beside it a step of 4
    bytes a tensor, or a group; and DeepSpeed's stages 1 and 2 keep whole the gradients of which a rank owns a part."""
    none = case_of(dp=4, engine="deepspeed")
    size, tensors, groups = psi(none), 2 + 1 + 2 * 9, 2
    assert states(estimate_memory(none)) == 16 * size + 4 * tensors
    assert states(estimate_memory(case_of(dp=4, zero=3, bucket_mib=1))) == 16 * size // 4 + 4 * groups
    two = estimate_memory(case_of(dp=4, zero=2, bucket_mib=1))
    least = 2 * size + 14 * size // 4 + 4 * groups
    assert least <= states(two) <= least + 2 * 2 * 32 * 8
    one = estimate_memory(case_of(dp=4, zero=1, bucket_mib=1))
    whole = named(one, "gradients before they are reduced", Moment.LOSS)
    assert states(one, Moment.LOSS) + whole == 4 * size + 12 * size // 4 + 4 * groups


def test_the_bucket_of_stages_1_and_2_is_allocated_whole() -> None:
    """5e8 elements of bf16 by default, in every backward pass; stage 1's waits for the last micro-batch, stage 3's is
    held throughout."""
    for stage, where in ((1, Moment.LOSS), (2, Moment.BACKWARD_PEAK)):
        memory = estimate_memory(case_of(dp=4, zero=stage))
        assert named(memory, "gradient bucket", where) == 2 * 500_000_000
        assert named(memory, "gradient bucket", Moment.STEADY) == 0
    assert named(estimate_memory(case_of(dp=4, zero=2)), "gradient bucket", Moment.LOSS) == 0
    assert named(estimate_memory(case_of(dp=4, zero=3, bucket_mib=3)), "gradient bucket", Moment.STEADY) == 3 * MIB


def test_offload_leaves_the_device_its_parameters_and_is_counted_where_it_is_all_one_memory() -> None:
    on_gpu = estimate_memory(case_of(dp=4, zero=2, bucket_mib=1, offload="optimizer")).by_moment[Moment.STEADY]
    on_cpu = estimate_memory(case_of("cpu", dp=4, zero=2, bucket_mib=1, offload="optimizer")).by_moment[Moment.STEADY]
    size = psi(case_of())
    assert on_gpu[Component.PARAMETERS] == on_cpu[Component.PARAMETERS] == 2 * size
    assert Component.OPTIMIZER not in on_gpu
    assert on_cpu[Component.OPTIMIZER] == 12 * size // 4 + 4 * 2


def test_a_gathers_copies_are_gloos_alone() -> None:
    gpu = estimate_memory(case_of(dp=4, zero=3, bucket_mib=1))
    assert not any("gloo" in term.formula for term in gpu.terms)


def test_parameters_are_cut_where_the_flat_buffer_goes_from_rank_to_rank() -> None:
    """Matrices in order, 256 64 32 32 64 128 128 128 ...: of 1,664 elements each of 4 ranks takes 416."""
    case = case_of(dp=4, zero=1, bucket_mib=1)
    rank = Rank(case, MemoryModel(case).ledger, 1, Backend.CUDA)
    matrices = rank.groups[0]
    assert [item.elements for item in matrices[:7]] == [256, 64, 32, 32, 64, 128, 128]
    assert rank.part(matrices) == 416
    assert [rank.pieces[item] for item in matrices[:5]] == [
        ((0, 256),), ((0, 64),), ((0, 32),), ((0, 32),), ((0, 32), (1, 32)),
    ]  # fmt: skip
    assert rank.owned(matrices[4]) == 32
    assert sum(map(rank.owned, matrices)) == 416
    assert rank.padding(matrices) == 0


def test_slices_are_joined_until_they_are_beyond_the_bucket() -> None:
    """One slice alone is sent from where it lies."""
    assert list(joined([5], 10)) == [0]
    assert list(joined([5, 6, 4], 10)) == [11, 0]
    assert list(joined([5, 6, 4, 1], 10)) == [11, 5]
    assert list(joined([12, 3, 3], 10)) == [0, 6]
