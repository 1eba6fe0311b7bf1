"""What a pipeline rank allocates in passing when its schedule is over, before it clips: for the averages over replicas
that no wrapper makes, and for a tied head's gradient."""

from __future__ import annotations

from collections.abc import Iterator

from memory.events import Label
from memory.holding import shape_of
from memory.state import MASTER_BYTES
from parallelism.data import replicate
from parallelism.data.fsdp import shard_elements
from parallelism.schedules.stages import head_is_copied, rank_of_stage
from suite.case import Case
from suite.operators import Ledger, Weight
from suite.record import Component


def finishing(case: Case, whole: Ledger, own: Ledger, pp_rank: int) -> Iterator[Label]:
    """Labels of tensors that come and go one after another. `whole` is the ledger of the rank's share of the whole
    model, `own` of its stages."""
    yield from _buckets(case, own)
    yield from _other_end(case, whole, pp_rank)


def _buckets(case: Case, own: Ledger) -> Iterator[Label]:
    """Flat copies of gradients that are averaged over the replicas (parallelism/data/leftovers.py)."""
    if not replicate.is_used(case.layout):
        return
    weights = [weight for placed in own.segments for weight in placed.segment.weights if not weight.tied_to]
    sizes = [weight.elements * MASTER_BYTES for weight in reversed(weights)]
    for bucket in replicate.buckets(sizes, replicate.bucket_cap_bytes(case.layout)):
        nbytes = sum(sizes[index] for index in bucket)
        yield Label(
            Component.TRANSIENTS, "flat bucket of gradients", "gradients of the bucket*4", nbytes,
            "parallelism/data/leftovers.py",
        )  # fmt: skip


def _other_end(case: Case, whole: Ledger, pp_rank: int) -> Iterator[Label]:
    """The gradient of a tied head, or of the embedding, from the other end of the pipeline."""
    layout = case.layout
    ends = {rank_of_stage(layout, 0), rank_of_stage(layout, layout.stages - 1)}
    if not head_is_copied(case) or len(ends) == 1 or pp_rank not in ends:
        return
    weight: Weight = whole.segments[0].segment.weights[0]
    nbytes = shard_elements(shape_of(weight), layout.shard_ranks, 0) * MASTER_BYTES
    yield Label(
        Component.TRANSIENTS,
        "a tied weight's gradient from the other end",
        "V*h*4",
        nbytes,
        "parallelism/pipeline/tied_head.py",
    )
