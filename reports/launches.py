"""The launches of a case in a run: each as a comparison of its own, and how free the machine was meanwhile."""

from __future__ import annotations

from dataclasses import replace

from reports.compare import CaseComparison, compare_case
from suite.environment import OTHER_CORES


def launches_of(case: CaseComparison) -> tuple[CaseComparison, ...]:
    """A case as its last launch has it, and as each before does."""
    earlier = (replace(case.result, measurement=measurement, earlier=()) for measurement in case.result.earlier)
    return (case, *map(compare_case, earlier))


def other_cores(case: CaseComparison) -> float:
    """Cores that other processes kept busy while the case ran on a cpu; 0 where that was not noted."""
    environment = case.result.measurement.environment if case.result.measurement else {}
    found = environment.get(OTHER_CORES)
    return float(found) if isinstance(found, int | float) and case.case.cluster.device == "cpu" else 0.0
