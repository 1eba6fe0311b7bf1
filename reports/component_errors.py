"""How far each component is off, over every rank and moment: what a total's error hides where two wrongs cancel."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from reports.compare import CaseComparison, Comparison
from suite.record import Component


@dataclass(frozen=True)
class ComponentErrors:
    """A component's rows over ranks and moments. Shares are of all that the rank held at the row's moment: a percentage
    of a component that is nearly nothing would say nothing."""

    component: Component
    count: int
    exact: int  # rows equal to the byte
    mean_share: float  # of |predicted - measured|
    worst_share: float  # signed
    worst_bytes: float  # of the same row
    worst_case: str
    bias_share: float  # mean of the signed shares


def component_errors(cases: Iterable[CaseComparison]) -> tuple[ComponentErrors, ...]:
    """The errors of each component that is ever there, in their order."""
    rows: dict[Component, list[tuple[Comparison, float, str]]] = {}
    for case in cases:
        for row, share in _shares(case):
            assert row.component
            rows.setdefault(row.component, []).append((row, share, case.case.label))
    return tuple(_errors(component, rows[component]) for component in Component if component in rows)


def _shares(case: CaseComparison) -> Iterator[tuple[Comparison, float]]:
    """Each measured row of a component that is there, and its difference as a share of its moment's total."""
    for total in case.totals:
        if total.rank is None or total.moment is None or not total.measured or total.predicted is None:
            continue
        for component in Component:
            row = case.memory(component, total.rank, total.moment)
            if row and row.difference is not None and (row.predicted or row.measured):
                yield row, row.difference / total.measured


def _errors(component: Component, rows: list[tuple[Comparison, float, str]]) -> ComponentErrors:
    worst, share, label = max(rows, key=lambda item: abs(item[1]))
    return ComponentErrors(
        component,
        len(rows),
        sum(row.is_exact for row, _, _ in rows),
        statistics.fmean(abs(share) for _, share, _ in rows),
        share,
        worst.difference or 0.0,
        label,
        statistics.fmean(share for _, share, _ in rows),
    )
