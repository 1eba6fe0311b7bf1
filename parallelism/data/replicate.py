"""Data parallel where DDP cannot be: gradients averaged over the replicas in flat buckets. Each rank averages its own
parts with the ranks that hold the same.

DDP takes no DTensors, which tensor and expert parallelism make, and it reduces when a whole backward pass ends: a
schedule that computes gradients of weights apart does so by calls that DDP does not hear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from parallelism.base import Strategy
from suite.collectives import Collective, Message
from suite.formats import formats_of
from suite.layout import Layout, Reduction

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case
    from suite.operators import Ledger

DEFAULT_BUCKET_MIB = 25  # DDP's


def bucket_cap_bytes(layout: Layout) -> int:
    """Most bytes of one all-reduce, unless a single gradient has more."""
    return (layout.bucket_mib or DEFAULT_BUCKET_MIB) * 2**20


def buckets(sizes: Sequence[int], cap: int) -> list[range]:
    """Which gradients travel together: in their order as many as fit the cap; a larger one goes alone."""
    found: list[range] = []
    start = filled = 0
    for index, size in enumerate(sizes):
        if index > start and filled + size > cap:
            found.append(range(start, index))
            start, filled = index, 0
        filled += size
    return [*found, range(start, len(sizes))] if sizes else []


def averaged(layout: Layout, ledger: Ledger) -> list[tuple[int, list[int]]]:
    """Gradients that are averaged over as many ranks: (ranks, elements of each, from the last to the first). Experts
    that expert parallelism divides have fewer replicas, or none."""
    weights = [weight for placed in ledger.segments for weight in placed.segment.weights if not weight.tied_to]
    alike = [weight.elements for weight in reversed(weights) if not weight.is_expert]
    experts = [weight.elements for weight in reversed(weights) if weight.is_expert]
    rows = [(layout.replica_ranks, alike), (layout.expert_replica_ranks, experts)]
    return [(ranks, sizes) for ranks, sizes in rows if ranks > 1 and sizes]


def messages(case: Case, ledger: Ledger, rank: int) -> tuple[Message, ...]:
    """A rank's all-reduces of one step: its parts of all gradients, in buckets, from the last parameter to the
    first, once a step or every micro-batch as the layout says."""
    layout, element = case.layout, formats_of(case).gradients.nbytes
    count = case.workload.micro_batches if layout.reduction is Reduction.MICRO_BATCH else 1
    return tuple(
        Message(
            Collective.ALL_REDUCE, "dp", ranks, element * sum(sizes[index] for index in bucket), count,
            "average the gradients of a bucket over the replicas", f"elements*{element}",
            "parallelism/data/leftovers.py",
        )
        for ranks, sizes in averaged(layout, ledger)
        for bucket in buckets([element * size for size in sizes], bucket_cap_bytes(layout))
    )  # fmt: skip


def apply(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Nothing to wrap: weights come from one seed, and the trainer averages the gradients (`leftovers`)."""
    return model


def is_used(layout: Layout) -> bool:
    """Are there replicas whose gradients neither FSDP2 nor DDP reduces?"""
    is_split = layout.pp > 1 and layout.schedule.splits_backward
    return layout.replica_ranks > 1 and layout.fsdp == 1 and (layout.tp > 1 or layout.ep > 1 or is_split)


REPLICATE = Strategy(
    name="replicate",
    axis="dp",
    divides=frozenset(),
    overheads="one flat bucket of gradients at a time",
    sends="all-reduce of the gradients' parts, once a step, after the last micro-batch",
    is_used=is_used,
    apply=apply,
    messages=messages,
    needs="tp > 1, ep > 1, or a schedule that splits the backward pass",
    example={"dp": 2, "tp": 2},
)
