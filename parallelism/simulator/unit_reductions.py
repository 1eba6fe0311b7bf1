"""What each unit of a stage gathers and reduces, in seconds of one pass, under FSDP2, DDP and DeepSpeed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from parallelism.data import ddp, fsdp
from parallelism.simulator.unit_messages import Seconds, total_seconds
from parallelism.simulator.work import Moved
from parallelism.zero.strategy import ZERO
from suite.case import Case
from suite.collectives import Collective, Message
from suite.formats import formats_of
from suite.layout import Reduction
from suite.operators import Ledger, Segment


@dataclass(frozen=True)
class Exchange:
    """Of one segment in one pass: seconds of its gather and its reduction, and the copies that go with them."""

    gather: float = 0.0
    reduce: float = 0.0
    is_kept: bool = False
    forward_copies: tuple[Moved, ...] = ()
    backward_copies: tuple[Moved, ...] = ()
    reduction_copies: tuple[Moved, ...] = ()


def sharded_exchanges(case: Case, part: Ledger, seconds: Seconds) -> list[Exchange]:
    """FSDP2: a block is a unit; the rest is the root, gathered with its first segment, reduced when that one's backward
    ends the pass, kept in between.

    Copies, on the stream that computes: what was gathered is copied out into parameters, gradients are copied into the
    reduction's input in its type (torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py, foreach_all_gather_copy_out
    and foreach_reduce). Reduced once a step, that copy is what accumulates gradients in every micro-batch.
    """
    root = [placed for placed in part.segments if not placed.prefix]
    found = []
    blocks: dict[Segment, Exchange] = {}
    for placed in part.segments:
        if placed.prefix:
            if placed.segment not in blocks:
                blocks[placed.segment] = _sharded(case, replace(part, segments=(placed,)), seconds)
            found.append(blocks[placed.segment])
        else:
            own = replace(part, segments=tuple(root))
            found.append(_sharded(case, own, seconds) if placed is root[0] else Exchange())
    return found


def _sharded(case: Case, own: Ledger, seconds: Seconds) -> Exchange:
    layout, formats = case.layout, formats_of(case)
    units = tuple(fsdp.sharded_units(own, layout))  # a block's experts come by themselves under expert parallelism
    compute, reduced = formats.numerics.weights.nbytes, formats.reduced.nbytes
    is_kept, freed = units[0].is_root, layout.reshard_after_forward
    uses = [[fsdp.gather_message(unit, unit.ranks, compute, "forward", 1) for unit in units]]
    if not is_kept and freed is not True and freed:
        uses.append([fsdp.gather_message(unit, int(freed), compute, "backward", 1) for unit in units])
    rows = [row for unit in units for row in fsdp.reduction_messages(layout, unit, reduced, 1)]
    elements = sum(unit.elements for unit in units)
    copied_out = Moved(2 * elements * compute)
    again = () if is_kept or freed is False else (copied_out,)
    return Exchange(
        gather=sum(total_seconds(use, seconds) for use in uses) / len(uses),
        reduce=sum(seconds(row) * _often(case, row) for row in rows if row.ranks > 1),
        is_kept=is_kept,
        forward_copies=(copied_out,),
        backward_copies=again,
        reduction_copies=(Moved(elements * (compute + reduced)),),
    )


def _often(case: Case, row: Message) -> float:
    """Of a reduction that runs in every micro-batch, how often replicas are averaged: once a step."""
    is_each = case.layout.reduction is Reduction.MICRO_BATCH and row.collective is Collective.ALL_REDUCE
    return 1 / case.workload.micro_batches if is_each else 1.0


def ddp_exchanges(case: Case, part: Ledger, rank: int, seconds: Seconds) -> list[Exchange]:
    """DDP: a bucket is reduced once the backward pass has filled it, so by the segment that holds its last gradient.
    Gradients are copied into buckets, and back (torch/csrc/distributed/c10d/reducer.cpp)."""
    element = formats_of(case).gradients.nbytes
    sizes: list[tuple[int, int]] = [
        (index, weight.elements * element)
        for index in reversed(range(len(part.segments)))
        for weight in reversed(part.segments[index].segment.weights)
        if not weight.tied_to
    ]
    rows = {row.payload: row for row in ddp.messages(case, part, rank)}
    reduce = [0.0] * len(part.segments)
    copied = [0] * len(part.segments)
    filled = done = 0
    ends = iter(ddp.buckets((size for _, size in sizes), case.layout.bucket_mib * 2**20))
    bucket = next(ends, 0)
    for index, size in sizes:
        filled += size
        copied[index] += size
        if filled - done == bucket:
            reduce[index] += seconds(rows[bucket])
            done, bucket = filled, next(ends, 0)
    each = 1 if case.layout.reduction is Reduction.MICRO_BATCH else case.workload.micro_batches
    return [
        Exchange(reduce=cost, reduction_copies=(Moved(4 * size / each),) if size else ())
        for cost, size in zip(reduce, copied, strict=True)
    ]


def zero_exchanges(case: Case, part: Ledger, rank: int, seconds: Seconds) -> list[Exchange]:
    """DeepSpeed: gradients go in its buckets, stage 3 gathers module by module. Each segment bears its part of both by
    its parameters: what is sent in all is exact, where a bucket ends is not."""
    rows, layout = ZERO.messages(case, part, rank), case.layout
    passes = case.workload.micro_batches
    gathered = [row for row in rows if row.collective is Collective.ALL_GATHER and layout.zero == 3]
    reduced = [row for row in rows if row.purpose.startswith("average the gradients")]
    gather = total_seconds(gathered, seconds) / (2 * passes)  # forward and backward; a rerun's is spread over both
    reduce = total_seconds(reduced, seconds) / (passes if layout.zero >= 2 else 1)
    parameters = max(1, part.parameters)
    shares = [placed.segment.parameters / parameters for placed in part.segments]
    return [Exchange(gather=gather * share, reduce=reduce * share) for share in shares]
