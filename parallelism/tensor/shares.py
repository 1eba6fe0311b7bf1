"""What of each weight a tensor-parallel rank holds."""

from __future__ import annotations

import math
from dataclasses import replace

from suite.layout import Layout
from suite.operators import Ledger, Operator, Placed, Region, Segment, Size, Split, Weight

#: the dimension of the stored weight that is divided
DIVIDED_DIM = {Split.COLUMN: 0, Split.VOCAB: 0, Split.ROW: 1}


def own_rows(rows: int, ranks: int, rank: int) -> range:
    """Rows (or columns) that a rank holds: parts of ceil(rows / ranks), the last one smaller. DTensor's Shard."""
    step = math.ceil(rows / ranks)
    return range(min(rank * step, rows), min((rank + 1) * step, rows))


def own_weight(weight: Weight, ranks: int, rank: int) -> Weight:
    """The weight with the shape of the rank's part; one that is not divided stays as it is."""
    if weight.split is Split.NONE:
        return weight
    shape, dim = list(weight.shape), DIVIDED_DIM[weight.split]
    whole = shape[dim]
    shape[dim] = Size(f"{whole.symbol}/t", len(own_rows(whole.value, ranks, rank)))
    return replace(weight, shape=tuple(shape))


def own_weights(ledger: Ledger, layout: Layout, rank: int) -> Ledger:
    """The ledger with the rank's parts for weights: what is made for weights (shards, gradients, buckets) is made for
    its parts. Activations and FLOPs are left as they were."""
    if layout.tp == 1:
        return ledger
    place = layout.place("tp", rank)
    parts: dict[Weight, Weight] = {}
    segments: dict[Segment, Segment] = {}

    def part(weight: Weight) -> Weight:
        return parts.setdefault(weight, own_weight(weight, layout.tp, place))

    def body(items: tuple[Operator | Region, ...]) -> tuple[Operator | Region, ...]:
        return tuple(
            replace(item, body=body(item.body))
            if isinstance(item, Region)
            else replace(item, weights=tuple(map(part, item.weights)))
            for item in items
        )

    for segment in ledger.counts:
        segments[segment] = replace(segment, body=body(segment.body))
    return replace(ledger, segments=tuple(Placed(each.prefix, segments[each.segment]) for each in ledger.segments))
