"""Other tools beside us: their errors are against what they say they state, silence has a reason, a crash is a row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from parallelism.peers import asking
from reports.compare import CaseResult, Run
from reports.export import run_mapping
from reports.load import load_run
from reports.markdown import markdown_report
from reports.page import render_page
from reports.peers import peer_cases, tool_errors
from reports.summary import RunComparison, compare_run
from suite.case import Case
from suite.cases import suite_of
from suite.child import ChildError, ask
from suite.layout import Layout
from suite.peers import Figure, Peer, PeerAnswer, unanswered
from suite.record import Component, Moment
from suite.store import PeersRow, RunRow, RunStore
from tests.unit import report_samples as made

pytestmark = pytest.mark.unit

STATE = {made.P: 400, made.G: 400, made.S: 800, Component.BUFFERS: 8}
TABLE = {Moment.BACKWARD_PEAK: {made.P: 400, made.A: 1600}, Moment.AFTER_BACKWARD: STATE}
SMALL = {moment: {part: size // 2 for part, size in row.items()} for moment, row in TABLE.items()}


def compared(*answers: PeerAnswer) -> RunComparison:
    """Two ranks, the second with half of the first's bytes: measured 1608 bytes of state and 2000 at the peak."""
    case = made.case(layout=Layout(dp=2))
    samples = made.memory_samples(TABLE) + made.memory_samples(SMALL, 1)
    estimates = (made.estimate(TABLE), made.estimate(SMALL, 1))
    result = CaseResult(case, estimates, None, made.measured(case, samples), peers=answers)
    return compare_run(Run("r", "now", "peers", "bench", {}, (result,), tuple(Peer)))


ANSWERS = (
    PeerAnswer(Peer.DEEPSPEED, Figure(1206), Figure(None, "states only"), "estimate(100)", "1.2"),
    unanswered(Peer.ACCELERATE, "knows no <b>sharding</b>"),
    PeerAnswer(Peer.LLM_ANALYSIS, Figure(1608), Figure(2500), "training()"),
)


def test_states_are_compared_with_states_and_peaks_with_peaks_on_the_fullest_rank() -> None:
    (case,) = peer_cases(compared(*ANSWERS))
    assert (case.states, case.peak) == (1608, 2000)
    ours, deepspeed, accelerate, analysis = case.rows
    assert (ours.tool, ours.states.error, ours.peak.error) == ("shardscope", 0, 0)
    assert deepspeed.states.error == -0.25  # 1206 of 1608
    assert (deepspeed.peak.error, deepspeed.peak.text) == (None, "n/a: states only")
    assert accelerate.is_silent
    assert not deepspeed.is_silent
    assert (analysis.states.error, analysis.peak.error) == (0, 0.25)


def test_a_tool_is_judged_by_what_it_says() -> None:
    comparison = compared(*ANSWERS)
    found = {row.tool: row for row in tool_errors(comparison, peer_cases(comparison))}
    assert list(found) == ["shardscope", "deepspeed", "accelerate", "llm-analysis"]
    assert found["deepspeed"].version == "1.2"
    assert found["deepspeed"].peak is found["accelerate"].states is None
    states = found["deepspeed"].states
    assert states
    assert (states.count, states.worst) == (1, -0.25)


def test_every_report_shows_every_tool_and_every_reason() -> None:
    comparison = compared(*ANSWERS)
    page = render_page(comparison)
    table = re.search(r'<table[^>]* id="peer-table"[^>]*>.*?</table>', page, re.DOTALL)
    assert table
    assert table[0].count("<tr") == 2 + 1 + 4  # headings, case, measured, four tools
    assert "n/a: knows no &lt;b&gt;sharding&lt;/b&gt;" in table[0]
    assert "n/a: states only" in table[0]
    assert "-25.00 %" in table[0]
    assert "estimate(100)" in page
    text = markdown_report(comparison)
    assert "llm-analysis | 1.57 KiB | 0.00 % | 2.44 KiB | +25.00 %" in text
    mapping = run_mapping(comparison)["peers"]
    assert [row["tool"] for row in mapping["cases"][0]["tools"]] == [row["tool"] for row in mapping["tools"]]
    assert mapping["cases"][0]["tools"][1]["peak"] == {"bytes": None, "error": None, "reason": "states only"}


def test_a_run_that_asks_nobody_says_nothing_of_it() -> None:
    comparison = compare_run(Run("r", "now", "quick", "b", {}, (CaseResult(made.case()),)))
    assert peer_cases(comparison) == ()
    assert 'id="peers"' not in render_page(comparison)
    assert run_mapping(comparison)["peers"] is None


def test_a_case_that_failed_keeps_the_tools_numbers_without_errors() -> None:
    case = made.case()
    run = Run("r", "now", "peers", "b", {}, (CaseResult(case, peers=ANSWERS),), tuple(Peer))
    (found,) = peer_cases(compare_run(run))
    assert found.rows[0].peak.text == "n/a: not estimated yet"
    assert found.rows[3].peak.text == "2.44 KiB"
    assert found.rows[3].peak.error is None


# --- asking ------------------------------------------------------------------------------------------------------


def test_a_tool_that_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "package_version", lambda name: None)
    case = made.case()
    answers = asking.ask_peers([case])[case.case_id]
    assert [answer.peer for answer in answers] == list(Peer)
    for answer in answers:
        assert answer.states.reason.startswith("not installed; pip install")
    assert "--no-deps llm-analysis" in answers[-1].peak.reason


def test_a_tool_whose_process_dies_is_a_row_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "package_version", lambda name: "1" if name == Peer.DEEPSPEED else None)
    monkeypatch.setattr(asking, "MODULE", "parallelism.peers.nowhere")
    case = made.case()
    answer = asking.ask_peers([case])[case.case_id][0]
    assert answer.states.nbytes is None
    assert re.fullmatch(r"crashed: ended with status 1: .*nowhere", answer.states.reason)
    assert answer.version == "1"


def test_a_process_that_answers_no_json_is_refused() -> None:
    with pytest.raises(ChildError, match=r"its answer is no JSON: 'The Zen"):
        ask("this", None, 60)


def test_answers_are_recorded_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [made.case(), made.case(layout=Layout(dp=2))]
    asked: list[list[Case]] = []

    def answer(given: list[Case]) -> dict[str, tuple[PeerAnswer, ...]]:
        asked.append(given)
        return {case.case_id: ANSWERS for case in given}

    monkeypatch.setattr(asking, "ask_peers", answer)
    store = RunStore.create(tmp_path)
    store.append(RunRow("now", "peers", tuple(case.to_mapping() for case in cases), peers=tuple(Peer)))
    store.append(PeersRow(cases[0].case_id, cases[0].to_mapping(), ANSWERS))
    asking.record_answers(store, cases, lambda text: None)
    asking.record_answers(store, cases, lambda text: None)
    assert asked == [cases[1:]]  # what was answered is not asked again
    run = load_run(store.folder)
    assert run.peers == tuple(Peer)
    assert [result.peers for result in run.results] == [ANSWERS, ANSWERS]


def test_a_run_of_another_suite_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ask_peers", lambda cases: pytest.fail("asked"))
    store = RunStore.create(tmp_path)
    store.append(RunRow("now", "quick", (made.case().to_mapping(),)))
    asking.record_answers(store, [made.case()], lambda text: None)
    assert store.rows(PeersRow) == ()


def test_the_suite_has_what_each_tool_has_a_number_for() -> None:
    cases = suite_of("peers")
    layouts = {str(case.layout) for case in cases}
    assert layouts >= {"single", "recompute-full", "dp2", "fsdp2", "fsdp4"}
    assert {case.layout.zero for case in cases if case.layout.is_deepspeed} == {2, 3}
    assert {case.workload.precision.value for case in cases} == {"fp32", "bf16-mixed"}
