"""Errors by setting: which cases stand together, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports.compare import CaseComparison, CaseResult, compare_case
from reports.factors import factor_rows
from suite.case import Case
from suite.layout import Layout, Recompute
from suite.models import preset
from suite.record import Component, Measurement, Moment, Outcome
from suite.spec import OptimizerKind, Workload
from tests.unit import report_samples as made

pytestmark = pytest.mark.unit


def compared(case: Case, predicted: int, measured: int) -> CaseComparison:
    """A case of one moment, so many bytes of activations predicted and measured."""
    sides = [{Moment.BACKWARD_PEAK: {Component.ACTIVATIONS: nbytes}} for nbytes in (predicted, measured)]
    measurement = Measurement(case.case_id, Outcome.OK, tuple(made.memory_samples(sides[1])))
    return compare_case(CaseResult(case, memory=(made.estimate(sides[0]),), measurement=measurement))


def test_each_value_of_a_setting_that_differs_has_a_row() -> None:
    base = Case(preset("gpt-1m"), Layout(), Workload())
    full = replace(base, layout=Layout(recompute=Recompute.parse("full")))
    sgd = replace(base, workload=replace(base.workload, optimizer=OptimizerKind.SGD))
    rows = factor_rows([compared(base, 100, 100), compared(full, 110, 100), compared(sgd, 98, 100)])
    assert [(row.factor, row.value, row.errors.count) for row in rows] == [
        ("recompute", "none", 2),
        ("recompute", "full", 1),
        ("optimizer", "adamw", 2),
        ("optimizer", "sgd", 1),
    ]
    none, whole, adamw, plain = rows
    assert (none.errors.mean_absolute, none.errors.worst, none.errors.bias) == pytest.approx((0.01, -0.02, -0.01))
    assert (none.over, none.under) == (0, 1)
    assert (whole.over, whole.under) == (1, 0)
    assert adamw.errors.bias == pytest.approx(0.05)
    assert plain.errors.worst == pytest.approx(-0.02)


def test_cases_that_were_not_measured_count_nowhere() -> None:
    base = Case(preset("gpt-1m"), Layout(), Workload())
    other = Case(preset("gpt-1m"), Layout(dp=2), Workload())
    unmeasured = compare_case(CaseResult(other, memory=()))
    assert factor_rows([compared(base, 100, 100), unmeasured]) == ()


def test_recomputation_does_not_tell_layouts_apart() -> None:
    base = Case(preset("gpt-1m"), Layout(dp=2), Workload())
    full = replace(base, layout=Layout(dp=2, recompute=Recompute.parse("full")))
    alone = Case(preset("gpt-1m"), Layout(), Workload())
    rows = factor_rows([compared(base, 1, 1), compared(full, 1, 1), compared(alone, 1, 1)])
    assert [(row.value, row.errors.count) for row in rows if row.factor == "layout"] == [("dp2", 2), ("single", 1)]
