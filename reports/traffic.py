"""What ranks send in a step: messages by formula beside the collectives that were counted, joined by rank."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from reports.comparison import Comparison
from suite.collectives import Collective, TrafficEstimate, tally
from suite.record import Measurement, Quantity, traffic_values

#: what a traffic row may be of, in the order of the rows
QUANTITIES = (Quantity.BYTES_SENT, Quantity.PAYLOAD, Quantity.COLLECTIVE_CALLS)

#: what one rank does by one side's word; a rank that is there and holds nothing sends nothing
_Side = Mapping[tuple[Quantity, Collective], float]
_Table = Mapping[int, _Side]


def traffic_rows(estimates: Iterable[TrafficEstimate], measurement: Measurement | None) -> tuple[Comparison, ...]:
    """A row a rank for the bytes sent in all, and one a collective for its bytes sent, payload and calls.

    A side that knows a rank knows all its collectives: what is absent there is zero. A rank that neither side sees
    send anything has its total alone.
    """
    predicted, measured = _predicted(estimates), _measured(measurement)
    rows = []
    for rank in sorted(predicted.keys() | measured.keys()):
        ours, theirs = predicted.get(rank), measured.get(rank)
        rows.append(Comparison(Quantity.BYTES_SENT, None, rank, None, _total(ours), _total(theirs)))
        known = {collective for side in (ours, theirs) for _, collective in side or ()}
        rows += [
            Comparison(quantity, None, rank, None, _value(ours, key), _value(theirs, key), collective)
            for collective in Collective
            if collective in known
            for quantity in QUANTITIES
            for key in ((quantity, collective),)
        ]
    return tuple(rows)


def fullest(rows: Iterable[Comparison]) -> Comparison | None:
    """Of the ranks' totals the largest, of those with both sides if any has; None where no rank sends anything."""
    totals = [row for row in rows if row.collective is None and (row.predicted or row.measured)]
    return max(totals, key=_prominence, default=None)


def _prominence(row: Comparison) -> tuple[bool, float]:
    return None not in (row.predicted, row.measured), row.measured or row.predicted or 0.0


def _predicted(estimates: Iterable[TrafficEstimate]) -> _Table:
    return {
        estimate.rank: {
            (quantity, collective): value
            for collective, sums in tally(estimate.messages).items()
            for quantity, value in traffic_values(sums).items()
        }
        for estimate in estimates
    }


def _measured(measurement: Measurement | None) -> _Table:
    table: dict[int, dict[tuple[Quantity, Collective], float]] = {}
    for sample in measurement.samples if measurement else ():
        if sample.quantity in QUANTITIES:
            row = table.setdefault(sample.rank, {})
            if sample.collective is not None:
                row[sample.quantity, sample.collective] = sample.value
    return table


def _total(side: _Side | None) -> float | None:
    """Bytes sent for all collectives: fsum, for a share of a payload may be a third, and order must not matter."""
    if side is None:
        return None
    return math.fsum(value for (quantity, _), value in side.items() if quantity is Quantity.BYTES_SENT)


def _value(side: _Side | None, key: tuple[Quantity, Collective]) -> float | None:
    return None if side is None else side.get(key, 0.0)
