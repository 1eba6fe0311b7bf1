"""Runs made up with known orders: pick, regret, correlation, and whether a ranking held, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reports.export import run_mapping
from reports.load import load_run
from reports.markdown import markdown_report
from reports.plan.run import Trial, trial_mapping
from reports.ranking_text import layout_table, ranking_sentence
from reports.run_ranking import REGRET, Held, held, held_text, run_ranking
from reports.summary import RunComparison, compare_run
from suite.case import Case
from suite.layout import Layout
from suite.record import Measurement, Outcome
from suite.spec import Workload
from suite.store import EstimateRow, MeasurementRow, RunRow, RunStore
from tests.unit import report_samples as made
from tests.unit.run_stores import MACHINE, ran

pytestmark = pytest.mark.unit


def laid(micro_batch: int = 4, micro_batches: int = 1, seq_len: int = 128, **layout: Any) -> Case:
    """A layout of gpt-1m."""
    work = Workload(seq_len=seq_len, micro_batch=micro_batch, micro_batches=micro_batches)
    return made.case(layout=Layout(**layout), workload=work)


#: three ways to take a batch of eight on two ranks
DP, FSDP, PP = laid(dp=2), laid(2, 2, fsdp=2), laid(2, 4, pp=2)
#: readings about a median: 1 % either way
AROUND = (0.990, 0.995, 1.0, 1.005, 1.010, 0.992, 1.008, 0.998, 1.002)


def around(seconds: float) -> list[float]:
    return [seconds * factor for factor in AROUND]


def compared(root: Path, *rows: tuple[Case, float | None, list[Measurement]]) -> RunComparison:
    """A run of cases, each with its predicted seconds and its launches, as `report` reads it."""
    store = RunStore.create(root)
    cases = tuple(case.to_mapping() for case, _, _ in rows)
    store.append(RunRow("2026-11-22T10:00:00+00:00", "made up", cases, ("bench",), MACHINE))
    for case, predicted, launches in rows:
        time = None if predicted is None else made.time_estimate(case, predicted)
        store.append(EstimateRow(case.case_id, case.to_mapping(), time=time))
        for launch in launches:
            store.append(MeasurementRow(case.to_mapping(), launch))
    return compare_run(load_run(store.folder))


def one(case: Case, predicted: float | None, seconds: float) -> tuple[Case, float | None, list[Measurement]]:
    return case, predicted, [ran(case, around(seconds))]


def test_the_ranking_of_a_run_by_hand(tmp_path: Path) -> None:
    """Predicted dp, fsdp, pp; measured fsdp 2.0, pp 2.2, dp 2.5: the pick loses 25 %. Places differ by 2, 1, 1."""
    found = compared(tmp_path, one(DP, 1.0, 2.5), one(FSDP, 1.1, 2.0), one(PP, 1.2, 2.2))
    ranking = run_ranking(found)
    assert ranking
    (choice,) = ranking.choices
    assert (choice.picked.name, choice.best.name) == (DP.case_id, FSDP.case_id)
    assert choice.regret == pytest.approx(0.25)
    assert choice.correlation == pytest.approx(1 - 6 * (4 + 1 + 1) / (3 * 8))
    assert held(choice) is Held.NO
    assert held_text(choice).startswith("did not hold: dp2 4x1, predicted fastest, took 25.0 % longer than fsdp2 2x2 (")
    assert choice.label == "gpt-1m, bf16-mixed, 2 ranks, batch 8 of 128 tokens"


def test_a_ranking_that_held_says_so(tmp_path: Path) -> None:
    ranking = run_ranking(compared(tmp_path, one(DP, 1.0, 2.0), one(FSDP, 1.1, 2.5)))
    assert ranking
    assert held(ranking.choices[0]) is Held.EXACT
    assert ranking.exact == 1
    assert "measured fastest in 1; regret 0.0 % in median" in ranking_sentence(ranking)


def test_a_pick_that_loses_less_than_the_limit_held_within_it(tmp_path: Path) -> None:
    ranking = run_ranking(compared(tmp_path, one(DP, 1.0, 2.0 * (1 + REGRET * 0.9)), one(FSDP, 1.1, 2.0)))
    assert ranking
    assert held(ranking.choices[0]) is Held.NEAR
    assert ranking.median_regret == pytest.approx(0.027)


def test_a_regret_that_launches_of_one_layout_differ_by_is_not_told_from_noise(tmp_path: Path) -> None:
    """Launches of the pick at 2.0 and 2.6 s, of the other at 2.0 twice: its median is 15 % more, and its
    own launches are 30 % apart."""
    first = DP, 1.0, [ran(DP, around(2.0)), ran(DP, around(2.6))]
    other = FSDP, 1.1, [ran(FSDP, around(2.0)), ran(FSDP, around(2.0))]
    ranking = run_ranking(compared(tmp_path, first, other))
    assert ranking
    (choice,) = ranking.choices
    assert choice.picked.measured == pytest.approx((2.0 * 1.010 + 2.6 * 0.990) / 2)  # the middle two of 18
    assert held(choice) is Held.UNSURE
    assert "1 not to be told from noise" in ranking_sentence(ranking)


def test_other_work_ranks_batches_and_unpredicted_or_failed_layouts_are_no_choice(tmp_path: Path) -> None:
    failed = laid(1, 4, dp=2)
    rows = [
        one(DP, 1.0, 2.0),
        one(laid(2, dp=2), 1.0, 1.0),  # half the batch
        one(laid(2, dp=4), 1.0, 1.0),  # more ranks
        one(laid(seq_len=64, dp=2), 1.0, 1.0),
        one(replace(FSDP, model=replace(FSDP.model, layers=3)), 1.0, 1.0),
        one(PP, None, 1.0),
        (failed, 0.5, [ran(failed, [], outcome=Outcome.OOM)]),
    ]
    found = compared(tmp_path, *rows)
    assert run_ranking(found) is None
    assert run_mapping(found)["summary"]["ranking"] is None
    assert "Layouts ranked" not in markdown_report(found)


def test_choices_of_a_run_are_told_apart_and_shown(tmp_path: Path) -> None:
    """Two choices, 10 % and nothing lost: 5 % in median."""
    four = laid(2, dp=4), laid(1, 2, fsdp=4)
    rows = [one(DP, 1.0, 2.2), one(FSDP, 1.1, 2.0), one(four[0], 3.0, 4.0), one(four[1], 2.0, 3.0)]
    found = compared(tmp_path, *rows)
    said = json.loads(json.dumps(run_mapping(found)["summary"]["ranking"], allow_nan=False))
    assert (said["choices"], said["exact"]) == (2, 1)
    assert said["median_regret"] == pytest.approx(0.05)
    assert [each["held"] for each in said["of_choices"]] == ["did not hold", "held"]
    assert [each["predicted_seconds"] for each in said["of_choices"][1]["of_layouts"]] == [2.0, 3.0]
    low, high = said["of_choices"][0]["regret_interval"]
    assert low < said["of_choices"][0]["regret"] < high
    text = markdown_report(found)
    assert "## Layouts ranked" in text
    assert "gpt-1m, bf16-mixed, 4 ranks, batch 8 of 128 tokens" in text


def test_layouts_stand_in_the_order_predicted_with_their_measured_places(tmp_path: Path) -> None:
    ranking = run_ranking(compared(tmp_path, one(PP, 1.2, 2.2), one(DP, 1.0, 2.5), one(FSDP, 1.1, 2.0)))
    assert ranking
    rows = layout_table(ranking.choices[0]).rows
    assert [row[:5] for row in rows] == [
        ("1", "3", "dp2 4x1", "1.00 s", "2.50 s"),
        ("2", "1", "fsdp2 2x2", "1.10 s", "2.00 s"),
        ("3", "2", "pp2-1f1b 2x4", "1.20 s", "2.20 s"),
    ]


def test_a_trial_says_what_did_not_run(tmp_path: Path) -> None:
    oom = PP, 0.9, [ran(PP, [], outcome=Outcome.OOM)]
    trial = Trial(tmp_path, compared(tmp_path, oom, one(DP, 1.0, 2.0), one(FSDP, 1.1, 2.5)))
    assert trial.sentences == (
        "The ranking held: dp2 4x1, predicted fastest, was fastest; rank correlation of 2 layouts 1.",
        "gpt-1m pp2-1f1b bf16-mixed flash x4: oom: said why.",
    )
    assert trial_mapping(trial)["held"] == ["held"]
    alone = Trial(tmp_path, compared(tmp_path, oom, one(DP, 1.0, 2.0)))
    assert alone.sentences[0] == "The ranking: not known; 1 layout ran to the end."
    assert trial_mapping(alone)["ranking"] is None
