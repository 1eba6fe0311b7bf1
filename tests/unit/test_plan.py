"""What `plan` is asked and answers: flags, contradictions, fewer GPUs, fronts, and what comes nearest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import run_all
from reports.plan.asked import Asked, Objective
from reports.plan.fronts import unbeaten
from reports.plan.misses import leanest, why_nothing
from reports.plan.solve import Answer, Solver, limit_bytes
from reports.plan.timing import timing_of
from reports.plan.worlds import best_of, halved, merged, worlds_of
from suite.case import Case, case_from
from suite.models import preset
from suite.spec import Cluster, Workload

PLAN = ["plan", "--model", "gpt-10m", "--device", "h100-sxm", "--seq-len", "128", "--global-batch", "8"]
SMALL = [*PLAN, "--per-node", "2"]


def _asked(gpus: int = 2, batch: int = 8, **kwargs: object) -> Asked:
    base = Case(preset("gpt-10m"), workload=Workload(seq_len=128), cluster=Cluster("h100-sxm"))
    return Asked(base, 1, gpus, batch, **kwargs)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def solver() -> Solver:
    return Solver(timing_of(_asked().base, None))


def _json(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, object]:
    assert run_all.main([*SMALL, *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_every_answer_is_a_case_of_the_question(capsys: pytest.CaptureFixture[str]) -> None:
    answer = _json(capsys, "--best", "5")
    layouts = answer["layouts"]
    assert isinstance(layouts, list)
    assert len(layouts) == 5
    times = []
    for layout in layouts:
        case = case_from(layout["case"])
        assert case.case_id == layout["case_id"]
        assert case.global_batch == 8
        assert case.layout.world_size == 2
        assert layout["verdict"] == "fits"
        assert layout["memory"]["peak_bytes"] <= layout["memory"]["available_bytes"]
        assert layout["time"]["step_seconds"] * layout["time"]["tokens_per_second"] == pytest.approx(8 * 128)
        times.append(layout["time"]["step_seconds"])
    assert times == sorted(times)


@pytest.mark.parametrize("flags", [["--fixed", "pp=2"], ["--pp", "2"], ["--fixed", "pp=2,micro_batch=4"]])
def test_what_is_fixed_is_so_in_every_answer(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    layouts = _json(capsys, *flags)["layouts"]
    assert isinstance(layouts, list)
    assert layouts
    for layout in layouts:
        assert layout["case"]["layout"]["pp"] == 2
        if "micro_batch" in flags[-1]:
            assert layout["case"]["workload"]["micro_batch"] == 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--fixed", "tp=2,tp=1"], "--fixed: tp is 1 here and 2 before"),
        (["--fixed", "tp=2", "--tp", "1"], "--tp: tp is 1 here and 2 before"),
        (["--fixed", "tp=3"], "tp(3) = 3 ranks, and there are 2 devices"),
        (["--fixed", "fsdp=2,zero=1"], "fsdp(2) with zero(1)"),
        (["--fixed", "zero=1,engine=torch,tp=2"], "zero(1) with tp(2)"),
        (["--fixed", "pp=2,virtual_stages=2,schedule=1f1b"], "schedule(1f1b) with virtual_stages(2)"),
        (["--fixed", "pp=2,virtual_stages=9"], "18 stages, and gpt-10m has"),
        (["--fixed", "colour=2"], "'colour' is no setting of a layout"),
        (["--fixed", "tp"], "'tp' is not NAME=VALUE"),
        (["--objective", "speed"], "'speed' is not known; known: time, cost, energy"),
        (["--accept", "oom"], "'oom' is not known; known: fits, tight"),
        (["--max-gpus", "2", "--nodes", "1"], "--max-gpus: given beside --nodes 1"),
        (["--fixed", "micro_batch=3"], "--global-batch: 8 sequences are no multiple"),
        (["--global-batch", "7", "--fixed", "dp=2"], "of 2 devices with dp 2; take a multiple of 2"),
        (["--per-node", "8", "--global-batch", "7", "--fixed", "fsdp=2"], "with fsdp 2; take a multiple of 2"),
    ],
)
def test_contradictions_are_one_line(capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    assert run_all.main([*SMALL, *flags]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_a_batch_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_all.main(["plan", "--model", "gpt-10m", "--device", "h100-sxm"]) == 2
    assert "--global-batch: missing" in capsys.readouterr().err


def test_a_case_file_brings_its_batch_and_not_its_layout(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = {
        "model": "gpt-10m", "layout": {"dp": 4}, "cluster": {"device": "h100-sxm"},
        "workload": {"seq_len": 128, "micro_batches": 4},
    }  # fmt: skip
    (tmp_path / "case.json").write_text(json.dumps(data), encoding="utf-8")
    flags = ["plan", "--case", str(tmp_path / "case.json"), "--per-node", "2", "--best", "1", "--json"]
    assert run_all.main(flags) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["global_batch"], answer["gpus"]) == (16, 2)


def test_half_as_many_machines_then_half_a_machine() -> None:
    asked = _asked().on(4, 8)
    assert [(each.nodes, each.per_node) for each in halved(asked)] == [(4, 8), (2, 8), (1, 8), (1, 4), (1, 2), (1, 1)]
    assert worlds_of(asked, None) == (asked,)


def test_cost_takes_as_few_gpus_as_its_seconds_say(solver: Solver) -> None:
    worlds = worlds_of(_asked(2, objective=Objective.COST), 2)
    assert [each.gpus for each in worlds] == [2, 1]
    plan = merged(best_of(solver, worlds))
    weights = [answer.weight for answer in plan.answers]
    assert weights == sorted(weights)
    assert weights[0] == plan.answers[0].seconds * plan.answers[0].asked.gpus
    alone = [solver.plan(each) for each in worlds]
    assert weights[0] == min(each.answers[0].weight for each in alone)
    (same,) = (each for each in alone if each.asked.gpus == plan.asked.gpus)
    shown = {answer.case for answer in plan.answers}
    unshown = [answer.seconds for answer in same.answers if answer.case not in shown]
    assert unshown
    assert plan.floor_seconds <= min(unshown)  # found, and left out for layouts of other numbers of GPUs


def test_energy_is_every_device_at_its_power_limit(solver: Solver) -> None:
    (answer,) = solver.plan(_asked(2, objective=Objective.ENERGY, best=1)).answers
    assert answer.weight == answer.seconds * 2 * 700  # watts: NVIDIA's H100 SXM datasheet


def test_no_point_of_a_front_is_beaten(solver: Solver) -> None:
    answers = solver.plan(_asked(4, best=10)).answers

    def peak(answer: Answer) -> float:
        return float(answer.peak_bytes)

    front = unbeaten(answers, peak)
    for point in front:
        assert not any(each.seconds < point.seconds and peak(each) < peak(point) for each in answers)
    beaten = [each for each in answers if each not in front]
    for each in beaten:
        assert any(point.seconds <= each.seconds and peak(point) <= peak(each) for point in front)


def test_the_nearest_is_named_where_nothing_fits(solver: Solver) -> None:
    base = Case(preset("llama3-8b"), workload=Workload(seq_len=1024), cluster=Cluster("h100-sxm"))
    asked = Asked(base, 1, 1, 1)
    miss = leanest(solver, asked)
    assert miss is not None
    missing = miss.peak_bytes - limit_bytes(asked)
    assert missing > 0
    said = why_nothing(solver, asked)
    assert said.startswith("no layout fits 1 x ")
    assert f"{missing / 2**30:.2f} GiB more than" in said
    assert " would do: llama3-8b " in said


def test_the_leanest_is_the_least_of_all(solver: Solver) -> None:
    asked = _asked(2, 2)
    search = solver.search(asked, float("inf"))
    peaks = []
    while (found := search.next()) is not None:
        peaks.append(found.peak_bytes)
    miss = leanest(solver, asked)
    assert miss is not None
    assert miss.peak_bytes == min(peaks)
