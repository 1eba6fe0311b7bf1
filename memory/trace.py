"""The trace tier: a rank's memory from the very code that would train, run on fake tensors in one process.

Three ways to know a number: a formula (memory/estimate.py), a trace, a measurement. The trace runs the case's trainer
with its strategies on tensors that have shapes and no data, in a process group that answers at once, and keeps the
account that the allocator would: any world size, any rank, any size of model. It sees every storage; what a kernel
allocates and frees inside itself it takes from suite/cpu_workspace.py, as the formula does.

Importing this module needs no torch; tracing does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memory.estimate import MemoryModel, representative_ranks, threads_of
from suite.case import Case
from suite.cpu_workspace import CpuWorkspace, has_tiles
from suite.layout import Offload
from suite.parse import require
from suite.record import Moment, Sample

if TYPE_CHECKING:
    from parallelism.trace_pass import Builder


@dataclass(frozen=True)
class Trace:
    """What a trace found on one rank: MEMORY samples as a measurement gives them, and bytes at each moment that are
    there for what kernels need in passing (workspace by formula; at a highest instant, how much higher it made it)."""

    rank: int
    samples: tuple[Sample, ...]
    workspace_bytes: dict[Moment, int]
    notes: tuple[str, ...]


def trace_case(case: Case, rank: int) -> list[Sample]:
    """Bytes of a rank at every moment of a steady step, the total and each component, as `cpu_samples` gives them.

    Counted: every storage that an operator returns, from parameters to the least temporary; on the CPU also kernels'
    workspace and gloo's copies, by formula. Not counted: a Python number's 8 bytes where autograd keeps one. Raises
    SpecError for a rank that there is not and for what cannot be traced (see `check`); RuntimeError in a process that
    has a process group of its own.
    """
    return list(trace(case, rank).samples)


def trace(case: Case, rank: int, packs_products: bool = True) -> Trace:
    """As `trace_case`, with what of it is workspace, and what a reader should know. Without `packs_products` oneDNN's
    packing of bf16 operands, the one approximate formula, is left out."""
    check(case, rank)
    from parallelism.building import make_trainer

    return _traced(case, rank, make_trainer, packs_products, notes_of(case))


def trace_transformers(case: Case, rank: int, hf_config: str) -> Trace:
    """As `trace`, of the model that transformers itself builds from a config.json, on one device or under DDP or FSDP2
    (a unit a decoder layer). SpecError where transformers is not installed, or for another layout."""
    check(case, rank)
    from parallelism.hf_trace import NOTE, hf_builder

    return _traced(case, rank, hf_builder(case, hf_config), True, (NOTE, *notes_of(case)))


def _traced(case: Case, rank: int, build: Builder, packs_products: bool, notes: tuple[str, ...]) -> Trace:
    from parallelism.trace_pass import trace_memory
    from suite.fake_scratch import CpuScratch
    from suite.fake_storages import nothing

    is_cpu = case.cluster.device == "cpu"
    scratch = CpuScratch(CpuWorkspace(threads_of(case), has_tiles()), packs_products) if is_cpu else nothing
    found = trace_memory(case, rank, scratch, build)
    with_it, without = (
        {item.moment: int(item.value) for item in samples if item.component is None and item.moment is not None}
        for samples in (found.samples, found.without_workspace)
    )
    workspace = {moment: with_it[moment] - without[moment] for moment in Moment}
    return Trace(rank, found.samples, workspace, notes)


def check(case: Case, rank: int) -> None:
    """Refuse what cannot be traced: SpecError with the reason."""
    layout = case.layout
    ranks = layout.world_size
    require(0 <= rank < ranks, f"--rank: {rank} is not a rank of this layout; its ranks are 0 to {ranks - 1}")
    require(
        not layout.is_deepspeed,
        f"layout: zero({layout.zero}) with engine({layout.engine}): DeepSpeed's engine goes by numbers that it reads on"
        " the host (an overflow skips the step, ranks compare lists); fake tensors have none; use estimate or bench",
    )
    require(
        layout.offload is Offload.NONE,
        f"layout.offload({layout.offload}): on fake tensors the host's memory is the device's; use estimate, or none",
    )


def notes_of(case: Case) -> tuple[str, ...]:
    """What a reader of the trace should know: on a GPU torch takes other kernels for some operators."""
    device = case.cluster.device
    if device == "cpu":
        return ()
    return (
        f"traced with the operators that torch runs on the CPU, without the CPU's workspace: on {device} some are one"
        " kernel that keeps less (RMSNorm), and kernels have workspace of their own",
    )


def ranks_to_trace(case: Case, rank: int | None = None) -> tuple[int, ...]:
    """The rank asked for, or by formula the fullest of those that stand for all."""
    if rank is not None:
        check(case, rank)
        return (rank,)
    return (max(representative_ranks(case.layout), key=MemoryModel(case).peak_bytes),)


def distinct_ranks(case: Case) -> tuple[int, ...]:
    """Of the ranks that stand for all, one of each kind: the first of those whose bytes the formulas give alike, at
    every moment and component."""
    model = MemoryModel(case)
    first: dict[str, int] = {}
    for rank in representative_ranks(case.layout):
        first.setdefault(repr(model.estimate(rank).by_moment), rank)
    return tuple(first.values())
