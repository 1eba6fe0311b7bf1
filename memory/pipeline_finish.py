"""What a pipeline rank allocates in passing when its schedule is over, before it clips: for the averages over replicas
that no wrapper makes, and for a tied head's gradient."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from memory.events import Label, Naming, Phase, passing
from memory.holding import shape_of
from parallelism.data import replicate
from parallelism.data.fsdp import shard_elements
from parallelism.schedules.stages import head_is_copied, rank_of_stage
from suite.case import Case
from suite.formats import formats_of
from suite.operators import Ledger, Weight
from suite.record import Component


def finishing(case: Case, whole: Ledger, own: Ledger, pp_rank: int) -> Phase:
    """Tensors that come and go one after another. `whole` is the ledger of the rank's share of the whole model, `own`
    of its stages."""
    return passing([*_buckets(case, own), *_other_end(case, whole, pp_rank)])


def _buckets(case: Case, own: Ledger) -> Iterator[tuple[int, Naming]]:
    """Flat copies of gradients that are averaged over the replicas (parallelism/data/leftovers.py)."""
    if not replicate.is_used(case.layout):
        return
    weights = [weight for placed in own.segments for weight in placed.segment.weights if not weight.tied_to]
    element = formats_of(case).gradients.nbytes
    sizes = [weight.elements * element for weight in reversed(weights)]
    for bucket in replicate.buckets(sizes, replicate.bucket_cap_bytes(case.layout)):
        nbytes = sum(sizes[bucket.start : bucket.stop])
        yield nbytes, partial(_bucket, nbytes, element)


def _bucket(nbytes: int, element: int) -> Label:
    return Label(
        Component.TRANSIENTS, "flat bucket of gradients", f"gradients of the bucket*{element}", nbytes,
        "parallelism/data/leftovers.py",
    )  # fmt: skip


def _other_end(case: Case, whole: Ledger, pp_rank: int) -> Iterator[tuple[int, Naming]]:
    """The gradient of a tied head, or of the embedding, from the other end of the pipeline."""
    layout = case.layout
    ends = {rank_of_stage(layout, 0), rank_of_stage(layout, layout.stages - 1)}
    if not head_is_copied(case) or len(ends) == 1 or pp_rank not in ends:
        return
    weight: Weight = whole.segments[0].segment.weights[0]
    element = formats_of(case).gradients.nbytes
    nbytes = shard_elements(shape_of(weight), layout.shard_ranks, 0) * element
    yield nbytes, partial(_tied, nbytes, element)


def _tied(nbytes: int, element: int) -> Label:
    return Label(
        Component.TRANSIENTS, "a tied weight's gradient from the other end", f"V*h*{element}", nbytes,
        "parallelism/pipeline/tied_head.py",
    )  # fmt: skip
