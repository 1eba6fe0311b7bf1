"""What reducing the gradients that no wrapper reduces needs in passing: flat copies, once the backward pass is over."""

from __future__ import annotations

from functools import partial

from memory.events import Label, Naming, Phase, passing
from memory.holding import shape_of
from parallelism.data import replicate
from parallelism.data.fsdp import padded_elements
from suite.case import Case
from suite.formats import formats_of
from suite.layout import Reduction
from suite.operators import Ledger, Split
from suite.record import Component


def leftovers(case: Case, ledger: Ledger, is_last: bool) -> Phase:
    """Flat copies of gradients after a micro-batch's backward pass (parallelism/data/leftovers.py).

    Counted: a bucket at a time where gradients are averaged beside tensor parallelism; after the last micro-batch,
    under sequence parallelism, the gradients of what every rank holds whole, of FSDP2 this rank's shards of them with
    their padding, which is not copied but on the last ranks.
    """
    layout, element = case.layout, formats_of(case).gradients.nbytes
    tensors: list[tuple[int, Naming]] = []
    if replicate.is_used(layout) and (is_last or layout.reduction is Reduction.MICRO_BATCH):
        for _, sizes in replicate.averaged(layout, ledger):
            for bucket in replicate.buckets([element * size for size in sizes], replicate.bucket_cap_bytes(layout)):
                filled = element * sum(sizes[bucket.start : bucket.stop])
                tensors.append(_flat_copy("bucket of gradients", filled, element))
    if is_last and layout.tp > 1 and layout.sequence_parallel:
        whole = sum(
            count * padded_elements(shape_of(weight), layout.shard_ranks)
            for segment, count in ledger.counts.items()
            for weight in segment.weights
            if weight.split is Split.NONE
        )
        tensors.append(_flat_copy("gradients of norms, row biases and positions", element * whole, element))
    return passing(tensors)


def _flat_copy(name: str, nbytes: int, element: int) -> tuple[int, Naming]:
    return nbytes, partial(_label, name, nbytes, element)


def _label(name: str, nbytes: int, element: int) -> Label:
    return Label(
        Component.TRANSIENTS, f"flat copy of the {name}", f"elements*{element}", nbytes, "parallelism/data/flat.py"
    )
