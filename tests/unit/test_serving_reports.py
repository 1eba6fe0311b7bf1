"""Served cases in reports: the two paths joined, and every text and document that shows them. By hand."""

from __future__ import annotations

import argparse
import csv
import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from reports.compare import CaseComparison, CaseResult, Run, compare_case
from reports.export import cases_csv, run_mapping
from reports.markdown import markdown_report
from reports.page import render_page
from reports.predict import Predictor, middle_of
from reports.serving_rows import ServingComparison
from reports.summary import RunComparison, compare_run
from reports.tables import print_run
from reports.wording import sentences
from suite.batches import BatchedLauncher, batched
from suite.case import Case, case_from
from suite.flags import passes_given, trained_case_of
from suite.launch import Launcher
from suite.parse import SpecError
from suite.passes import ON_RANKS, SERVED, Pass, check_passes
from suite.record import CacheTerm, Component, Measurement, Outcome, Quantity, Sample, ServingEstimate

pytestmark = pytest.mark.unit

KEYS, VALUES, SCALES = Component.KEYS, Component.VALUES, Component.SCALES


def case_of(tp: int = 1, **cache: Any) -> Case:
    return case_from({
        "model": "llama-1m", "layout": {"tp": tp}, "workload": {"seq_len": 32, "micro_batch": 4, "precision": "fp32"},
        "serving": {"new_tokens": 3}, "cache": cache,
    })  # fmt: skip


def estimate(ranks: int = 1) -> ServingEstimate:
    """100 bytes of keys and values each on a rank, 80 of them read; 2 s and 0.5 s."""
    terms = tuple(
        CacheTerm(component, nbytes, "made up", "made up", rank, quantity)
        for rank in range(ranks)
        for quantity, nbytes in ((Quantity.CACHE, 100), (Quantity.CACHE_READ, 80))
        for component in (KEYS, VALUES)
    )
    return ServingEstimate(terms, 2.0, 0.5, "made up")


def sizes(rank: int = 0, keys: int = 100) -> list[Sample]:
    stored = [Sample(Quantity.CACHE, nbytes, rank, component=part) for part, nbytes in ((KEYS, keys), (VALUES, 100))]
    return stored + [Sample(Quantity.CACHE_READ, 80, rank, component=part) for part in (KEYS, VALUES)]


def times(rank: int = 0, slower: float = 1.0) -> list[Sample]:
    """Two repetitions more than the one that is dropped, which took ten times as long."""
    prefill = [Sample(Quantity.PREFILL_TIME, value * slower, rank, index) for index, value in enumerate((40, 4, 4.2))]
    steps = (9, 9, 0.4, 0.4, 0.42, 0.4)
    return prefill + [Sample(Quantity.DECODE_TIME, value * slower, rank, index) for index, value in enumerate(steps)]


def worth(differ: int = 0, apart: float = 1e-6) -> list[Sample]:
    found = {Quantity.TOKENS_MADE: 3, Quantity.TOKENS_DIFFER: differ, Quantity.LOGIT_DIFFERENCE: apart}
    return [Sample(quantity, value, 0) for quantity, value in found.items()]


def compared(case: Case, samples: list[Sample], outcome: Outcome = Outcome.OK) -> CaseComparison:
    measurement = Measurement(case.case_id, outcome, tuple(samples), "" if outcome is Outcome.OK else "full after 1")
    return compare_case(CaseResult(case, measurement=measurement, serving=estimate(case.layout.tp)))


def serving(case: CaseComparison) -> ServingComparison:
    assert case.serving is not None
    return case.serving


# --- rows ----------------------------------------------------------------------------------------------------


def test_bytes_are_joined_by_rank_and_component_with_a_total() -> None:
    found = serving(compared(case_of(tp=2), [*sizes(0), *sizes(1, keys=96)]))
    rows = {(row.quantity, row.rank, row.component): (row.predicted, row.measured) for row in found.rows}
    assert rows[Quantity.CACHE, 0, None] == (200, 200)
    assert rows[Quantity.CACHE, 1, KEYS] == (100, 96)
    assert rows[Quantity.CACHE_READ, 1, None] == (160, 160)
    assert len(found.both(Quantity.CACHE)) == 4
    fullest = found.fullest(Quantity.CACHE)
    assert fullest is not None
    assert (fullest.rank, fullest.is_exact) == (0, True)


def test_a_component_that_one_side_lacks_is_nothing_there() -> None:
    samples = [*sizes(), Sample(Quantity.CACHE, 8, 0, component=SCALES)]
    rows = {row.component: row for row in serving(compared(case_of(), samples)).both(Quantity.CACHE)}
    assert (rows[SCALES].predicted, rows[SCALES].measured) == (0, 8)


def test_the_slowest_rank_counts_and_the_first_repetition_does_not() -> None:
    found = serving(compared(case_of(tp=2), [*times(0), *times(1, slower=2.0)]))
    assert found.prefill.median == pytest.approx(8.2)
    assert found.decode.median == pytest.approx(0.8)
    assert found.decode.error == pytest.approx((0.5 - 0.8) / 0.8)
    assert not found.decode.is_noisy
    assert found.tokens_per_second == pytest.approx(4 / 0.8)


def test_a_case_that_did_not_end_well_has_no_measured_side() -> None:
    case = compared(case_of(), [*sizes(), *times()], Outcome.CACHE_FULL)
    found = serving(case)
    assert (found.prefill.predicted, found.prefill.median, found.answers) == (2.0, None, {})
    assert {row.measured for row in found.rows} == {None}
    assert (case.status, case.reason) == ("cache_full", "full after 1")


def test_a_served_case_has_no_step_and_no_peak() -> None:
    case = compared(case_of(), [*sizes(), *times(), *worth()])
    assert (case.peak.measured, case.speed.measured_seconds, case.curve.final) == (None, None, None)
    quantities = {row.quantity for row in case.rows}
    assert Quantity.STEP_TIME not in quantities
    assert {Quantity.CACHE, Quantity.CACHE_READ, Quantity.DECODE_TIME, Quantity.TOKENS_DIFFER} <= quantities


# --- what is shown -------------------------------------------------------------------------------------------


@pytest.fixture
def run() -> RunComparison:
    losses = [Sample(Quantity.EXACT_LOSS, 2.0, 0), Sample(Quantity.CACHED_LOSS, 2.25, 0)]
    results = (
        compared(case_of(), [*sizes(), *times(), *worth()]).result,
        compared(case_of(cache_dtype="int4"), [*sizes(keys=90), *times(), *worth(3, 0.5), *losses]).result,
        compared(case_of(cache_tokens=33), [], Outcome.CACHE_FULL).result,
    )
    return compare_run(Run("now", "today", "<kv>", "bench", results=results, passes=SERVED))


def test_the_sentences_say_what_was_served_and_nothing_of_training(run: RunComparison) -> None:
    assert sentences(run) == (
        "2 of 3 cases ran to the end; 1 cache_full.",
        "Caches, by rank and component: 3 of 4 rows of what is stored and 4 of 4 rows of what a decode step reads equal"
        " to the byte.",
        "Exact caches: 1 of 1 case in fp32 made every token that the same model makes without a cache; logits lie at"
        " most 1e-06 in fp32 apart.",
        "Caches that round: 3 of 12 tokens in 1 case differ from those without a cache; logits lie at most 0.5 in fp32"
        " apart.",
        "Held-out text read through the cache costs at most 0.25 nats a token more than without one"
        " (llama-1m single fp32 4 x 32+3 cache int4, 2 without).",
        "Predicted time to the first token is off by 51.2 % in median and -51.2 % at worst, from token to token is off"
        " by 25.0 % in median and +25.0 % at worst.",
    )


def test_terminal_markdown_and_page_show_served_cases_and_no_step(run: RunComparison) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    print_run(run, console)
    for text in (console.export_text(), markdown_report(run)):
        assert "exact" in text
        assert "4.1 s" in text.replace("4.10", "4.1")
        assert "cache_full" in text.replace("\\", "")
        assert "7.389" in text  # perplexity, e^2
        assert "peak" not in text
    assert "cache int4" in render_page(run)


def test_json_and_csv_hold_every_figure(run: RunComparison) -> None:
    said = run_mapping(run)
    assert said["summary"]["serving"]["cache_rows_exact"] == 3
    assert said["summary"]["serving"]["exact_caches_with_the_same_tokens"] == 1
    first = said["cases"][0]["serving"]
    assert first["cache"][0] == {
        "quantity": "cache_bytes", "rank": 0, "component": None, "predicted": 200, "measured": 200, "error": 0.0,
    }  # fmt: skip
    assert (first["prefill_seconds"]["measured"], first["prefill_seconds"]["readings"]) == (pytest.approx(4.1), 2)
    assert first["tokens_differ"] == 0
    rows = list(csv.DictReader(io.StringIO(cases_csv(run))))
    assert (rows[0]["cache_measured_bytes"], rows[1]["cache_measured_bytes"], rows[2]["outcome"]) == (
        "200", "190", "cache_full",
    )  # fmt: skip
    assert rows[0]["peak_measured_bytes"] == ""


# --- predictions ---------------------------------------------------------------------------------------------


def test_a_served_case_is_predicted_on_every_rank_and_not_as_training() -> None:
    row = Predictor(passes=SERVED)(case_of(tp=2))
    assert row.serving is not None
    assert {term.rank for term in row.serving.cache} == {0, 1}
    # 4 layers, 4 sequences of 34 entries, 1 head of 32 numbers in fp32
    keys = [term.nbytes for term in row.serving.cache if term.component is KEYS and term.rank == 1]
    assert keys == [4 * 4 * 35 * 32 * 4, 4 * 4 * 34 * 32 * 4]
    assert (row.memory, row.time, row.traffic) == ((), None, ())


@pytest.mark.parametrize(("made", "middle"), [(1, 1), (2, 2), (16, 9)])
def test_the_middle_token_is_that_of_the_median_decode_step(made: int, middle: int) -> None:
    """Of 16 tokens 15 are made by decode steps, the eighth of which makes the ninth token."""
    case = case_of()
    whole = replace(case, serving=replace(case.serving, new_tokens=made))
    assert middle_of(whole).serving.new_tokens == middle


# --- passes --------------------------------------------------------------------------------------------------


def options(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**({"passes": None, "suite": None} | given))


def test_a_served_case_has_its_own_pass_and_shares_launches() -> None:
    trained = case_from({"model": "llama-1m"})
    assert passes_given(options(), [case_of()]) == SERVED
    assert passes_given(options(), [trained]) == ON_RANKS
    assert isinstance(batched(Launcher("x"), [case_of()], SERVED), BatchedLauncher)
    for passes, cases, words in (
        (None, [case_of(), trained], "--case: some cases are served and some trained"),
        ("train", [case_of()], "--passes: train, but the case is served; its passes: serve"),
        ("serve", [trained], "--passes: serve, but the case is trained; its passes: train, memory, traffic"),
    ):
        with pytest.raises(SpecError, match=words):
            passes_given(options(passes=passes), cases)
    with pytest.raises(SpecError, match="case 2: --passes: memory, but the case is served"):
        check_passes(True, (Pass.MEMORY,), "case 2: ")


def test_what_is_about_training_refuses_a_served_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suite.flags.case_of", lambda options: case_of())
    with pytest.raises(SpecError, match=r"^--new-tokens: simulate is about training, and the"):
        trained_case_of(options(verb="simulate"))
