"""Formulas against traces: the totals of every traced rank at every moment, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence

from reports.comparison import Comparison
from suite.record import MemoryEstimate, Quantity, Sample

#: differences up to so many bytes are scalars: those of AdamW, a norm and a loss, which are traced and not modelled
SCALARS = 2048


def traced_rows(estimates: Sequence[MemoryEstimate], samples: Sequence[Sample]) -> tuple[Comparison, ...]:
    """Of each traced rank and moment the total, bytes: predicted (None where nothing was), and traced as `measured`."""
    of_rank = {estimate.rank: estimate for estimate in estimates}
    rows = []
    for sample in samples:
        if sample.component is None and sample.moment is not None:
            estimate = of_rank.get(sample.rank)
            known = estimate is not None and sample.moment in estimate.by_moment
            predicted = estimate.total_bytes(sample.moment) if estimate and known else None
            rows.append(Comparison(Quantity.MEMORY, None, sample.rank, sample.moment, predicted, sample.value))
    return tuple(rows)


def beyond_scalars(rows: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The rows whose sides differ by more than SCALARS."""
    return tuple(row for row in rows if row.difference is not None and abs(row.difference) > SCALARS)
