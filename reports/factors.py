"""Where the errors lie: a run's peak-memory errors by each setting in which its cases differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from reports.compare import CaseComparison
from reports.summary import Errors, errors_of
from suite.case import Case
from suite.layout import Recompute

#: the settings by which cases are grouped: heading -> a case's value
FACTORS: dict[str, Callable[[Case], str]] = {
    "model": lambda case: case.model.name,
    "layout": lambda case: str(replace(case.layout, recompute=Recompute())),
    "recompute": lambda case: str(case.layout.recompute),
    "precision": lambda case: case.workload.precision.value,
    "attention": lambda case: case.workload.attention.value,
    "loss": lambda case: case.workload.loss.value,
    "optimizer": lambda case: case.workload.optimizer.value,
}


@dataclass(frozen=True)
class FactorRow:
    """The cases that have one value of one setting."""

    factor: str
    value: str
    errors: Errors
    over: int  # cases whose prediction is too high
    under: int
    state_rows: int
    state_exact: int
    trace: Errors | None = None
    """of the formulas against the traces, over ranks and moments"""


def factor_rows(cases: Sequence[CaseComparison]) -> tuple[FactorRow, ...]:
    """A row for every value of every setting in which the measured cases differ, in order of first appearance."""
    known = [case for case in cases if case.peak.error is not None]
    rows = []
    for factor, value_of in FACTORS.items():
        groups: dict[str, list[CaseComparison]] = {}
        for case in known:
            groups.setdefault(value_of(case.case), []).append(case)
        if len(groups) > 1:
            rows += [_row(factor, value, group) for value, group in groups.items()]
    return tuple(rows)


def _row(factor: str, value: str, group: Sequence[CaseComparison]) -> FactorRow:
    differences = [case.peak.difference or 0.0 for case in group]
    errors = errors_of([case.peak.error for case in group])
    assert errors is not None  # every case of a group has an error
    return FactorRow(
        factor=factor,
        value=value,
        errors=errors,
        over=sum(difference > 0 for difference in differences),
        under=sum(difference < 0 for difference in differences),
        state_rows=sum(len(case.state_rows) for case in group),
        state_exact=sum(row.is_exact for case in group for row in case.state_rows),
        trace=errors_of([row.error for case in group for row in case.traced]),
    )
