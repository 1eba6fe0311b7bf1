"""Estimates of a run's cases for the routing that their own steps had, once it is recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reports.predict import Predictor
from suite.case import Case
from suite.received import RoutedAs
from suite.record import Measurement, Outcome, Quantity
from suite.store import EstimateRow, MeasurementRow, RunStore


def record_routed(store: RunStore, cases: Sequence[Case], predict: Predictor, tell: Callable[[str], None]) -> None:
    """Estimate the cases again whose measurement says how their tokens were routed, and write that down: of two
    estimates of a case the later counts. One that fails is told, and the first stands. Called again on the same store
    it estimates what was measured since."""
    left = _left(store)
    for case in cases:
        if case.case_id in left:
            try:
                store.append(predict(case, left[case.case_id].samples))
            except (ArithmeticError, LookupError, TypeError, ValueError, AssertionError) as error:
                tell(f"{case.label}: not estimated for its recorded routing: {type(error).__name__}: {error}")


def _left(store: RunStore) -> dict[str, Measurement]:
    """The last measurements with a recorded routing that has not been estimated since, by case id."""
    left: dict[str, Measurement] = {}
    for row in store.read():
        if isinstance(row, MeasurementRow) and row.measurement.outcome is Outcome.OK:
            if any(sample.quantity is Quantity.RECEIVED_ROWS for sample in row.measurement.samples):
                left[row.measurement.case_id] = row.measurement
        elif isinstance(row, EstimateRow) and row.routing is RoutedAs.RECORDED:
            left.pop(row.case_id, None)
    return left
