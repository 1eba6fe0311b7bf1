"""Errors by setting: which cases stand together, and what is said of them."""

from __future__ import annotations

import io
from dataclasses import replace

import pandas
import pytest

from reports.compare import CaseComparison, CaseResult, Run, compare_case
from reports.export import cases_csv
from reports.factors import factor_rows
from reports.page import render_page
from reports.summary import OPENED, RunComparison, compare_run
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


def many(count: int) -> RunComparison:
    """So many cases, the predicted peak of number n too high by n per mille; the last failed."""
    cases = [Case(preset("gpt-1m"), Layout(), Workload(seq_len=n + 1)) for n in range(count)]
    found = [compared(case, 1000 + n, 1000) for n, case in enumerate(cases)]
    failed = compare_case(
        CaseResult(cases[-1], measurement=Measurement(cases[-1].case_id, Outcome.FAILED, reason="x, y"))
    )
    run = Run("made up", "today", "many", "bench", {}, tuple(item.result for item in (*found[:-1], failed)))
    return compare_run(run)


def test_of_many_cases_those_are_opened_up_that_failed_or_are_furthest_off() -> None:
    comparison = many(OPENED + 10)
    opened = [case.case.workload.seq_len for case in comparison.opened]
    assert len(opened) == OPENED
    assert opened == list(range(11, OPENED + 11))  # the nearest ten, of 1 to 10 tokens, are not
    assert many(OPENED).opened == many(OPENED).cases


def test_every_case_has_a_line_of_the_table_and_pandas_reads_it() -> None:
    table = pandas.read_csv(io.StringIO(cases_csv(many(OPENED + 10))))
    assert len(table) == OPENED + 10
    assert table.peak_error[7] == pytest.approx(0.007)
    assert table.largest_moment_difference_bytes[7] == 7
    assert table.outcome.iloc[-1] == "failed"
    assert table.reason.iloc[-1] == "x, y"


def test_a_page_of_many_cases_stays_small_and_says_what_it_leaves_out() -> None:
    page = render_page(many(OPENED + 10))
    assert page.count('<details class="case">') == OPENED
    assert f"{OPENED} of {OPENED + 10} cases are opened up here" in page
    assert 'id="factor-table"' not in page  # they differ in their length alone
