"""A plan's best layouts run by a launcher that is told what they take: the order held, or not; no rank starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import run_all
from reports.load import load_run
from reports.plan.asked import Asked
from reports.plan.run import run_answers, trial_mapping
from reports.plan.solve import Plan, Solver
from reports.plan.timing import timing_of
from reports.run_ranking import Held, held
from reports.running import Running
from suite.case import Case, case_from
from suite.passes import Pass
from suite.record import Measurement
from tests.unit.run_stores import ran

pytestmark = pytest.mark.unit

PROGRAM = "python run_all.py"


@dataclass(frozen=True)
class Told:
    """A runner whose cases take so many seconds a step; interrupted at a case that has none."""

    seconds: Mapping[str, float]

    def run(self, case: Case, folder: Path) -> Measurement:
        """What was told."""
        if case.case_id not in self.seconds:
            raise KeyboardInterrupt
        return ran(case, [self.seconds[case.case_id] * factor for factor in (0.99, 1.0, 1.01, 0.995, 1.005)])


@dataclass(frozen=True)
class ToldRunning(Running):
    """Starts no ranks."""

    seconds: Mapping[str, float] = field(default_factory=dict)

    def launcher(self, passes: Sequence[Pass]) -> Any:
        """What is told stands for what is measured."""
        return Told(self.seconds)


@pytest.fixture(scope="module")
def plan() -> Plan:
    base = case_from({"model": "gpt-1m", "workload": {"seq_len": 256}, "cluster": {"device": "h100-sxm"}})
    asked = Asked(base, 1, 2, 8, {"recompute": base.layout.recompute, "pp": 1}, best=3)
    return Solver(timing_of(base, None)).plan(asked)


def running(root: Path, seconds: Mapping[str, float]) -> Running:
    return ToldRunning(PROGRAM, ("plan", "--run", "3"), str(root), launches=2, seconds=seconds)


def test_the_best_layouts_are_run_twice_and_ranked(tmp_path: Path, plan: Plan) -> None:
    """The third is measured fastest, in half the first's time: a regret of 100 %."""
    ids = [answer.case.case_id for answer in plan.answers]
    trial = run_answers(plan, 3, None, running(tmp_path, dict(zip(ids, (2.0, 3.0, 1.0), strict=True))))
    (choice,) = trial.choices
    assert (choice.picked.name, choice.best.name) == (ids[0], ids[2])
    assert choice.regret == pytest.approx(1.0)
    assert held(choice) is Held.NO
    assert trial.sentences[0].startswith("The ranking did not hold: ")
    assert [len(case.result.earlier) for case in trial.comparison.cases] == [1, 1, 1]
    said = json.loads(json.dumps(trial_mapping(trial), allow_nan=False))
    assert [each["case_id"] for each in said["cases"]] == ids
    assert said["cases"][0]["step_seconds"]["measured"] == 2.0
    assert said["cases"][0]["peak_memory_bytes"]["predicted"] > 0
    assert (trial.folder / "report.html").is_file()


def test_fewer_may_be_run_than_are_shown(tmp_path: Path, plan: Plan) -> None:
    ids = [answer.case.case_id for answer in plan.answers[:2]]
    trial = run_answers(plan, 2, None, running(tmp_path, dict(zip(ids, (1.0, 2.0), strict=True))))
    assert [held(choice) for choice in trial.choices] == [Held.EXACT]
    assert load_run(trial.folder).suite == "plan: best 2 of gpt-1m on 2 x h100-sxm"


def test_an_interrupted_run_keeps_what_it_has_and_says_how_to_go_on(
    tmp_path: Path, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    first = plan.answers[0].case.case_id
    with pytest.raises(KeyboardInterrupt):
        run_answers(plan, 3, None, running(tmp_path, {first: 1.0}))
    (folder,) = tmp_path.iterdir()
    assert f"go on with: {PROGRAM} bench --resume {folder}" in capsys.readouterr().err
    done = [result.measurement is not None for result in load_run(folder).results]
    assert done == [True, False, False]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model", "gpt-1m"], "--suite plan: given beside --model; its cases are the layouts of its own questions"),
        (["--dp", "2"], "--suite plan: given beside --dp; "),
        (["--passes", "memory"], "--suite plan: given beside --passes; "),
        (["--emit", "slurm"], "--suite plan: given beside --emit; "),
        (["--calibration", "none"], "--calibration: none: layouts of --suite plan are chosen by their times"),
    ],
)
def test_what_the_suite_cannot_take_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    assert run_all.main(["bench", "--suite", "plan", "--runs", str(tmp_path / "runs"), *given]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert not (tmp_path / "runs").exists()
