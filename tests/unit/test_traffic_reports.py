"""Bytes sent in every report: the join by rank and collective, and the tables of runs that send."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from reports.compare import CaseComparison, CaseResult, Run, compare_case
from reports.contract import estimate_mapping
from reports.export import run_mapping
from reports.frame import run_frame
from reports.markdown import markdown_report
from reports.page import render_page
from reports.predict import Predictor
from reports.summary import compare_run
from reports.tables import print_run
from suite.case import case_from
from suite.collectives import Collective, Message, TrafficEstimate
from suite.layout import Layout
from suite.record import Outcome, Quantity, Sample
from tests.unit import report_samples as made
from tests.unit.test_page import Outline

pytestmark = pytest.mark.unit

AR, AG = Collective.ALL_REDUCE, Collective.ALL_GATHER
SENT, PAYLOAD, CALLS = Quantity.BYTES_SENT, Quantity.PAYLOAD, Quantity.COLLECTIVE_CALLS


def message(collective: Collective, payload: int, count: int = 1, ranks: int = 3) -> Message:
    return Message(collective, "dp", ranks, payload, count, f"purpose of {payload}", f"n*{payload}", "made up")


def samples(rank: int, collective: Collective, sent: float, payload: float, calls: float) -> list[Sample]:
    pairs = ((SENT, sent), (PAYLOAD, payload), (CALLS, calls))
    return [Sample(quantity, value, rank, 2, collective=collective) for quantity, value in pairs]


def result(predicted: list[TrafficEstimate], measured: list[Sample], outcome: Outcome = Outcome.OK) -> CaseResult:
    case = made.case(layout=Layout(dp=3))
    return CaseResult(case, measurement=made.measured(case, measured, outcome), traffic=tuple(predicted))


#: over three ranks: two gathers of 3072 send 2/3 of them, 4096; an all-reduce of 4 sends 16/3
ESTIMATE = TrafficEstimate((message(AG, 3072, 2), message(AR, 4)), 0)
EXACT = [*samples(0, AG, 4096, 6144, 2), *samples(0, AR, 16 / 3, 4, 1)]


def rows(found: CaseComparison) -> dict[tuple[Quantity, int | None, Collective | None], tuple[object, object]]:
    return {(row.quantity, row.rank, row.collective): (row.predicted, row.measured) for row in found.traffic}


def test_rows_hold_both_sides_of_each_rank_and_collective() -> None:
    found = compare_case(result([ESTIMATE], EXACT))
    assert rows(found) == {
        (SENT, 0, None): (4096 + 16 / 3, 4096 + 16 / 3),
        (SENT, 0, AR): (16 / 3, 16 / 3),
        (PAYLOAD, 0, AR): (4, 4),
        (CALLS, 0, AR): (1, 1),
        (SENT, 0, AG): (4096, 4096),
        (PAYLOAD, 0, AG): (6144, 6144),
        (CALLS, 0, AG): (2, 2),
    }
    assert all(row.is_exact for row in found.traffic)
    assert [row.collective for row in found.sent_rows] == [AR, AG]


def test_what_a_known_rank_does_not_send_is_zero_and_of_others_nothing_is_known() -> None:
    found = compare_case(
        result([TrafficEstimate((message(AG, 3),), 0)], [*samples(0, AR, 4, 3, 1), *samples(1, AG, 2, 3, 1)])
    )
    table = rows(found)
    assert table[SENT, 0, AG] == (2, 0)
    assert table[SENT, 0, AR] == (0, 4)
    assert table[SENT, 1, AG] == (None, 2)
    assert table[SENT, 1, None] == (None, 2)
    assert [row.rank for row in found.sent_rows] == [0, 0]


def test_the_rank_that_sends_most_is_shown_of_those_with_both_sides() -> None:
    estimates = [TrafficEstimate((message(AG, 3 * size),), rank) for rank, size in enumerate((5, 9))]
    measured = [sample for rank in range(3) for sample in samples(rank, AG, 10 + 8 * rank, 0, 1)]
    sent = compare_case(result(estimates, measured)).sent
    assert sent is not None
    assert (sent.rank, sent.predicted, sent.measured) == (1, 18, 18)


def test_a_case_that_did_not_end_well_has_a_prediction_alone() -> None:
    sent = compare_case(result([ESTIMATE], EXACT, Outcome.FAILED)).sent
    assert sent is not None
    assert (sent.predicted, sent.measured) == (4096 + 16 / 3, None)


def test_one_rank_that_says_it_sends_nothing() -> None:
    found = compare_case(result([TrafficEstimate(())], [Sample(SENT, 0.0, 0, 2)]))
    assert rows(found) == {(SENT, 0, None): (0, 0)}
    assert found.sent is None


# --- the reports ---------------------------------------------------------------------------------------------


def run_of(*results: CaseResult) -> Run:
    return Run("r", "now", "traffic", "bench", {}, results)


def printed(run: Run, width: int = 80) -> str:
    file = io.StringIO()
    print_run(compare_run(run), Console(file=file, width=width))
    return file.getvalue()


OFF = [*samples(0, AG, 8192, 12288, 4), *samples(0, AR, 16 / 3, 4, 1)]
SILENT = replace(made.finished(made.case(), 0.0, 0.1), traffic=(TrafficEstimate(()),))


def test_every_report_shows_what_is_sent_and_how_far_off() -> None:
    for measured, error in ((EXACT, "exact"), (OFF, "-49.97 %")):
        run = run_of(result([ESTIMATE], measured), SILENT)
        sent = "4.01 KiB" if error == "exact" else "8.01 KiB"
        text = re.sub(r" +", " ", printed(run))
        assert f"4.01 KiB {sent} {error}" in text
        assert f"4.01 KiB | {sent} | {error}" in markdown_report(compare_run(run))
        page = render_page(compare_run(run))
        assert Outline(page).tags["table"] == len(re.findall(r'<div class="scroll"[^>]*>\s*<table', page))
        table = re.search(r'<table[^>]* id="traffic-table"[^>]*>.*?</table>', page, re.DOTALL)
        assert table
        assert re.findall(r'<td class="n ?(?:outside)?">([^<]*)</td>', table[0]) == ["4.01 KiB", sent, error]
        assert ('class="n outside"' in table[0]) is (error != "exact")
        exact = 2 if error == "exact" else 1
        assert f"{exact} of 2 rows equal to the byte" in text.replace("\n", " ")
        assert "purpose of 3072" in page


def test_a_run_that_sends_nothing_does_not_speak_of_it() -> None:
    for run in (run_of(SILENT), made.sample_run()):
        assert "ytes sent" not in printed(run)
        assert "ytes sent" not in markdown_report(compare_run(run))
        assert "ytes sent" not in render_page(compare_run(run))


def test_json_has_the_sum_and_each_collective() -> None:
    mapping = json.loads(json.dumps(run_mapping(compare_run(run_of(result([ESTIMATE], OFF), SILENT)))))
    assert (mapping["summary"]["bytes_sent_rows"], mapping["summary"]["bytes_sent_rows_exact"]) == (2, 1)
    first, second = (case["bytes_sent"] for case in mapping["cases"])
    assert (first["rank"], first["predicted"], first["measured"]) == (0, 4096 + 16 / 3, 8192 + 16 / 3)
    assert first["collectives"]["all_gather"]["collective_calls"] == {"predicted": 2, "measured": 4, "error": -0.5}
    assert second == {"predicted": None, "measured": None, "error": None, "rank": None, "collectives": {}}


def test_a_frame_lays_both_tiers_side_by_side() -> None:
    frame = run_frame(run_of(result([ESTIMATE], OFF)))
    table = frame[frame.quantity == "bytes_sent"].pivot_table(
        index="collective", columns="tier", values="value", aggfunc="sum"
    )
    assert table.loc["all_gather"].to_dict() == {"formula": 4096, "measure": 8192}
    assert table.loc["all_reduce"].to_dict() == {"formula": 16 / 3, "measure": 16 / 3}
    assert set(frame[frame.tier == "formula"].source) == {"made up"}


def test_the_contract_sums_its_messages() -> None:
    """gpt-1m over three replicas: one bucket; its parameters are fp32, two thirds are passed on, twice."""
    case = case_from({"model": "gpt-1m", "layout": {"dp": 3}, "workload": {"seq_len": 16}})
    answer = estimate_mapping(case, Predictor())
    traffic, payload = answer["traffic"], 4 * answer["parameters"]
    assert sum(row["sent_bytes"] for row in traffic["messages"]) == pytest.approx(
        traffic["total_sent_bytes"], rel=1e-15
    )
    assert list(traffic["collectives"]) == ["all_reduce"]
    assert traffic["collectives"]["all_reduce"]["payload_bytes"] == payload
    assert traffic["total_sent_bytes"] == pytest.approx(4 / 3 * payload, rel=1e-15)
    alone = estimate_mapping(made.case(), Predictor())["traffic"]
    assert alone == {"rank": 0, "total_sent_bytes": 0, "collectives": {}, "messages": []}


def test_the_predictor_writes_the_traffic_of_each_rank() -> None:
    row = Predictor()(case_from({"model": "gpt-1m", "layout": {"fsdp": 2}, "workload": {"seq_len": 16}}))
    assert [traffic.rank for traffic in row.traffic] == [0, 1]
    assert all(traffic.sent > 0 for traffic in row.traffic)
