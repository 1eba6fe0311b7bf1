"""Step times on a run's page: parts as shares of the prediction, all cases on one scale."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parallelism.simulator.plan import Part
from reports.compare import CaseResult, Run
from reports.page import render_page
from reports.palette import PARTS
from reports.summary import RunComparison, compare_run
from reports.time_view import legend_of, time_rows
from suite.record import TimeEstimate
from tests.unit import report_samples as made

pytestmark = pytest.mark.unit


def timed(*seconds: tuple[float | None, dict[str, float]]) -> RunComparison:
    """A run of cases with these predicted times and parts, nothing measured."""
    results = []
    for place, (total, parts) in enumerate(seconds):
        case = made.case(layout=replace(made.Layout(), dp=1 + place))
        results.append(CaseResult(case, time=TimeEstimate(total, 1.0, 1.0, None, None, parts, "by hand")))
    return compare_run(Run("r", "now", "s", "b", {}, tuple(results)))


def test_parts_and_lengths() -> None:
    first = {"compute": 3.0, "host": 0.0, "gather_communication": 1.0}
    rows = time_rows(timed((4.0, first), (8.0, {"compute": 8.0}), (None, {})).cases)
    assert [row.length for row in rows] == [0.5, 1.0]
    assert [(part.name, part.share) for part in rows[0].parts] == [("compute", 0.75), ("gather communication", 0.25)]
    assert legend_of(rows) == [("compute", PARTS[Part.COMPUTE]), ("gather communication", PARTS[Part.GATHER])]


def test_the_measured_step_is_a_tick_on_the_same_scale() -> None:
    comparison = compare_run(made.sample_run())
    rows = time_rows(comparison.opened)
    both = [row for row in rows if row.measured_at is not None]
    assert both
    for row in both:
        speed = row.case.speed
        assert speed.predicted_seconds
        assert speed.measured_seconds
        assert row.measured_at
        assert row.length / row.measured_at == pytest.approx(speed.predicted_seconds / speed.measured_seconds)
    page = render_page(comparison)
    assert page.count('class="time-bar"') == len(rows)
    assert page.count('title="measured ') == len(both)
    assert 'href="#times"' in page


def test_a_run_without_times_has_no_section() -> None:
    assert 'id="times"' not in render_page(timed((None, {})))
