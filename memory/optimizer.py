"""What a rank's optimizer keeps between steps, and what its step allocates in passing. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

from memory.holding import Holding, is_on_host
from memory.update_kernels import PASSING, Passing
from parallelism.data.fsdp import shard_shape
from parallelism.zero.redundancy import is_zero_redundancy, share_of_rank
from suite.case import Case
from suite.formats import formats_of
from suite.operators import Ledger, Segment
from suite.optimizers import (
    CODEBOOK_BYTES,
    LEAST_QUANTIZED,
    QUANTIZED_BLOCK,
    kernel_of,
    rule_of,
    state_bytes,
    step_bytes_of,
)
from suite.record import Component
from suite.spec import OptimizerKernel, OptimizerKind

#: equal blocks in a row that a loop over tensors has to see: one, and one that follows another
ENOUGH = 2

STATES = {
    OptimizerKind.ADAMW: "parameters*{moment}*2",
    OptimizerKind.SGD: "parameters*{moment}*1",
    OptimizerKind.ADAFACTOR: "(rows + columns of matrices + elements of vectors)*4",
    OptimizerKind.MUON: "matrices of the blocks*4*1 + the others*4*2",
    OptimizerKind.ADAM_8BIT: f"parameters*2*(1 + 4/{QUANTIZED_BLOCK}) + {CODEBOOK_BYTES}, 4*2 each in tensors under"
    f" {LEAST_QUANTIZED}",
}
SOURCES = {
    OptimizerKind.ADAFACTOR: "torch/optim/_adafactor.py; arXiv:1804.04235, section 3",
    OptimizerKind.MUON: "torch/optim/_muon.py; AdamW for what is no matrix of a block",
    OptimizerKind.ADAM_8BIT: "parallelism/adam_8bit.py; arXiv:2110.02861, section 2",
}


@dataclass(frozen=True, slots=True)
class Updated:
    """A parameter as the optimizer of this rank sees it: what updates it, its part here, and whether that is a part."""

    rule: OptimizerKind
    shape: tuple[int, ...]
    is_part: bool = False


def optimizer_bytes(case: Case, ledger: Ledger, rank: int) -> int:
    """Bytes of a rank's optimizer state, which is made for its part of the parameters, without padding.

    Counted: moments, factors, scales, codebooks, and a 4-byte step a tensor where the device keeps it. Not counted:
    Python's own objects, and what is in host memory.
    """
    if is_on_host(case):
        return 0
    counted = _of_replica(case, ledger, rank) if is_zero_redundancy(case.layout) else _counted(case, ledger, rank)
    rules = ((count, item.rule, item.shape) for count, item in counted)
    return state_bytes(rules, step_bytes_of(case), formats_of(case).optimizer.nbytes)


def optimizer_holding(case: Case, ledger: Ledger, rank: int) -> Holding:
    """A rank's optimizer state as a row."""
    kind, shards = case.workload.optimizer, case.layout.shard_ranks
    sharded = f" / {shards}" if shards > 1 else ""
    has_step = kind is not OptimizerKind.SGD and step_bytes_of(case)
    step = " + 4*tensors" + (" of AdamW" if kind in (OptimizerKind.MUON, OptimizerKind.ADAM_8BIT) else "")
    return Holding(
        Component.OPTIMIZER, optimizer_bytes(case, ledger, rank), f"{kind.value} state",
        f"{STATES[kind].format(moment=formats_of(case).optimizer.nbytes)}{sharded}{step if has_step else ''}",
        SOURCES.get(kind, "torch.optim, one state a parameter"), is_lazy=True,
    )  # fmt: skip


def optimizer_transient(case: Case, ledger: Ledger, rank: int) -> Holding | None:
    """What the optimizer's step allocates in passing, the largest of its groups; nothing where it is one fused kernel.

    Not counted: scalars, and what bf16 products of Muon's iterations allocate inside (suite/cpu_workspace.py).
    """
    if is_on_host(case) or case.layout.is_deepspeed:
        return None
    kernel = kernel_of(case)
    if kernel is OptimizerKernel.FUSED and case.workload.optimizer in (OptimizerKind.ADAMW, OptimizerKind.SGD):
        return None
    groups: dict[tuple[OptimizerKind, bool, bool], list[tuple[int, ...]]] = {}
    for item in _updated(case, ledger, rank, kernel):
        groups.setdefault((item.rule, len(item.shape) >= 2, item.is_part), []).append(item.shape)
    element = formats_of(case).gradients.nbytes
    found: list[tuple[int, Passing]] = []
    for (rule, is_matrix, _), shapes in groups.items():
        passing = PASSING.get((rule, _kernel_of_rule(rule, kernel)))
        if passing is not None and (not passing.is_for_decay or (is_matrix and case.recipe.weight_decay)):
            found.append((passing.nbytes(shapes, element), passing))
    if not found:
        return None
    nbytes, passing = max(found, key=lambda each: each[0])
    return Holding(Component.TRANSIENTS, nbytes, passing.name, passing.formula.format(element=element), passing.source)


def _kernel_of_rule(rule: OptimizerKind, kernel: OptimizerKernel) -> OptimizerKernel:
    """Muon and 8-bit Adam take a tensor at a time, whatever updates the rest."""
    return OptimizerKernel.LOOP if rule in (OptimizerKind.MUON, OptimizerKind.ADAM_8BIT) else kernel


def _updated(case: Case, ledger: Ledger, rank: int, kernel: OptimizerKernel) -> Iterator[Updated]:
    """A rank's parameters in the module's order; of a run of equal blocks a loop, for which only neighbours matter, is
    shown as many as it can tell apart. A list of all is summed, in any order."""
    if is_zero_redundancy(case.layout):
        yield from (item for _, item in _of_replica(case, ledger, rank))
        return
    if kernel is OptimizerKernel.FOREACH:
        for count, item in _counted(case, ledger, rank):
            yield from repeat(item, count)
        return
    last, run = None, 0
    for placed in ledger.segments:
        run = run + 1 if placed.segment is last else 1
        last = placed.segment
        if run <= ENOUGH:
            yield from _of_segment(case, placed.segment, bool(placed.prefix), rank)


def _counted(case: Case, ledger: Ledger, rank: int) -> Iterator[tuple[int, Updated]]:
    """A rank's parameters, those of equal blocks at once."""
    blocks = {placed.segment for placed in ledger.segments if placed.prefix}
    for segment, count in ledger.counts.items():
        for item in _of_segment(case, segment, segment in blocks, rank):
            yield count, item


def _of_segment(case: Case, segment: Segment, is_in_block: bool, rank: int) -> Iterator[Updated]:
    layout, kind = case.layout, case.workload.optimizer
    for weight in segment.weights:
        if not weight.tied_to:
            shape = shard_shape(weight, layout, rank)
            yield Updated(rule_of(kind, shape, is_in_block), shape, weight.is_part)


def _of_replica(case: Case, ledger: Ledger, rank: int) -> Iterator[tuple[int, Updated]]:
    """torch's ZeRO-1 gives a rank whole parameters."""
    for item in share_of_rank(case, ledger, rank):
        yield 1, Updated(rule_of(case.workload.optimizer, item.shape, is_in_block=False), item.shape)
