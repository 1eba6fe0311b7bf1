"""Formulas against traces in a run's reports: which rows meet, what is said of them, and which runs trace at all."""

from __future__ import annotations

import argparse
import io
from dataclasses import replace

import pytest
from rich.console import Console

from reports.compare import CaseResult, Run
from reports.export import run_mapping
from reports.predict import Predictor
from reports.summary import RunComparison, compare_run
from reports.tables import factor_table
from reports.traced import SCALARS, beyond_scalars, traced_rows
from reports.wording import trace_sentence
from suite.batches import BatchedLauncher, batched
from suite.cases import SUITES, suite_of
from suite.flags import passes_given
from suite.launch import Launcher
from suite.layout import Layout, Recompute
from suite.parse import SpecError
from suite.passes import ON_RANKS, Pass, on_ranks
from suite.record import Moment
from suite.store import RunRow
from tests.unit import report_samples as made

pytestmark = pytest.mark.unit

BOTH = (Pass.MEMORY, Pass.TRACE)


def tables(bytes_at_loss: int) -> made.Table:
    return {Moment.LOSS: {made.P: 40_000, made.A: bytes_at_loss - 40_000}, Moment.STEADY: {made.P: 40_000}}


def result(layout: Layout, predicted: int, traced: int) -> CaseResult:
    """Ranks 0 and 1 predicted and measured, rank 1 traced."""
    of = made.case(layout=layout)
    samples = [sample for rank in (0, 1) for sample in made.memory_samples(tables(predicted), rank)]
    return CaseResult(
        of,
        tuple(made.estimate(tables(predicted), rank) for rank in (0, 1)),
        measurement=made.measured(of, samples),
        traced=tuple(made.memory_samples(tables(traced), 1)),
    )


@pytest.fixture
def comparison() -> RunComparison:
    """One case right, one 4,000 of 100,000 bytes too high at one of two moments, one that cannot be traced."""
    full = Layout(recompute=Recompute.parse("full"))
    good, high = result(Layout(), 80_000, 80_000), result(full, 104_000, 100_000)
    refused = replace(result(Layout(dp=2), 80_000, 80_000), traced=(), untraced="no numbers")
    return compare_run(Run("now", "now", "memory", "bench", results=(good, high, refused), passes=BOTH))


def test_totals_of_traced_ranks_meet_their_estimates() -> None:
    samples = made.memory_samples(tables(100_000), 1)
    rows = traced_rows([made.estimate(tables(104_000), rank) for rank in (0, 1)], samples)
    assert [(row.rank, row.moment, row.predicted, row.measured) for row in rows] == [
        (1, Moment.LOSS, 104_000, 100_000),
        (1, Moment.STEADY, 40_000, 40_000),
    ]
    assert beyond_scalars(rows) == rows[:1]
    assert beyond_scalars([replace(rows[0], predicted=100_000 + SCALARS)]) == ()
    assert [row.predicted for row in traced_rows([], samples)] == [None, None]


def test_the_sentence_counts_cases_and_moments(comparison: RunComparison) -> None:
    """Errors of the four totals: 0, 0, 0 and 4 %."""
    assert trace_sentence(comparison) == (
        "Traced on fake tensors: 2 of 3 cases (1 cannot be); formula against trace off by 1.0000 % on average and"
        f" +4.0000 % at worst ({comparison.cases[1].case.label}, rank 1 at loss) over all moments; 1 of 4 totals"
        " differ by more than scalars (2.00 KiB)."
    )
    refused = comparison.run.results[2]
    later = replace(refused, untraced="")
    both = compare_run(replace(comparison.run, results=(refused, later)))
    assert trace_sentence(both) == "Traced on fake tensors: 0 of 2 cases (1 cannot be, 1 not yet)."
    assert trace_sentence(compare_run(replace(comparison.run, results=(later,)))) == ""


def test_each_setting_has_its_own_errors(comparison: RunComparison) -> None:
    text = io.StringIO()
    Console(file=text, width=200).print(factor_table(comparison))
    rows = {line.split("  ")[-1].strip() for line in text.getvalue().splitlines()}
    assert "trace worst" in text.getvalue()
    assert {"+4.0000 %", "0.0000 %", "n/a"} <= rows
    untraced = compare_run(replace(comparison.run, results=comparison.run.results[2:]))
    text = io.StringIO()
    Console(file=text, width=200).print(factor_table(untraced))
    assert "trace" not in text.getvalue()


def test_json_says_why_a_case_has_no_trace(comparison: RunComparison) -> None:
    said = run_mapping(comparison)
    assert said["summary"]["traced_cases"] == 2
    expected = {"rows": 4, "mean_absolute": 0.01, "median_absolute": 0.0, "worst": 0.04, "bias": 0.01}
    assert said["summary"]["trace_error"] == expected
    assert said["summary"]["trace_rows_beyond_scalars"] == 1
    assert said["summary"]["untraced"] == {"no numbers": 1}
    assert said["cases"][2]["trace"] == {"reason": "no numbers", "totals_bytes": []}
    assert run_mapping(compare_run(made.sample_run()))["cases"][0]["trace"] is None


# --- which runs trace ---


def given(passes: str | None, suite: str | None = None) -> tuple[Pass, ...]:
    return passes_given(argparse.Namespace(passes=passes, suite=suite), suite_of("quick"))


def test_the_memory_suites_trace_and_no_other_does() -> None:
    assert {name for name in SUITES if Pass.TRACE in given(None, name)} == {"memory", "memory-pairs"}
    assert given(None) == RunRow("now", "x", ()).passes == Predictor().passes == ON_RANKS
    assert given("trace,memory") == BOTH


def test_a_trace_stands_beside_a_measurement() -> None:
    with pytest.raises(SpecError, match="--passes: trace without memory; give memory,trace, or run the verb trace"):
        given("trace,train")


def test_ranks_and_estimates_are_as_of_the_memory_pass_alone() -> None:
    """Cases still share launches, and of their estimates the sums are kept."""
    cases = [made.case()]
    assert on_ranks(BOTH) == (Pass.MEMORY,)
    assert isinstance(batched(Launcher("x"), cases, BOTH), BatchedLauncher)
    assert all(estimate.is_summed for estimate in Predictor(passes=BOTH)(cases[0]).memory)
