"""A sweep records every case, goes on after failures, and goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from suite.case import Case, case_from
from suite.progress import Silent
from suite.record import Measurement, Outcome
from suite.store import EstimateRow, MeasurementRow, RunStore
from suite.sweep import finished, sweep

pytestmark = pytest.mark.unit


def case_of(seed: int) -> Case:
    return case_from({"model": {"layers": 1}, "recipe": {"seed": seed}})


CASES = [case_of(seed) for seed in range(3)]
IDS = [case.case_id for case in CASES]


@dataclass
class FakeLauncher:
    """Ends each case as told; writes down what ran where."""

    end: Callable[[Case], Outcome] = lambda case: Outcome.OK
    ran: list[tuple[str, Path]] = field(default_factory=list)

    def run(self, case: Case, folder: Path) -> Measurement:
        self.ran.append((case.case_id, folder))
        outcome = self.end(case)
        return Measurement(case.case_id, outcome, reason="" if outcome is Outcome.OK else "so")


@dataclass
class Told(Silent):
    """Keeps what it was told."""

    lines: list[str] = field(default_factory=list)

    def begin(self, total: int, done: int) -> None:
        self.lines.append(f"begin {done}/{total}")

    def case_started(self, case: Case) -> None:
        self.lines.append(f"start {case.recipe.seed}")

    def case_ended(self, case: Case, measurement: Measurement) -> None:
        self.lines.append(f"end {case.recipe.seed} {measurement.outcome}")


def predict(case: Case) -> EstimateRow:
    return EstimateRow(case.case_id, case.to_mapping())


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path)


def written(store: RunStore) -> list[str]:
    """The store's rows as 'estimate 0', 'measurement 0 ok', ..."""
    lines = []
    for row in store.read():
        assert isinstance(row, EstimateRow | MeasurementRow)
        seed = row.case["recipe"]["seed"]
        lines.append(
            f"measurement {seed} {row.measurement.outcome}" if isinstance(row, MeasurementRow) else f"estimate {seed}"
        )
    return lines


def test_an_estimate_before_each_run_and_a_measurement_after(store: RunStore) -> None:
    launcher, told = FakeLauncher(), Told()
    measurements = sweep(CASES, store, launcher, predict, told)
    assert written(store) == [
        *["estimate 0", "measurement 0 ok"],
        *["estimate 1", "measurement 1 ok"],
        *["estimate 2", "measurement 2 ok"],
    ]
    assert launcher.ran == [(case_id, store.folder / "cases" / case_id) for case_id in IDS]
    assert [measurement.case_id for measurement in measurements] == IDS
    assert told.lines == ["begin 0/3", "start 0", "end 0 ok", "start 1", "end 1 ok", "start 2", "end 2 ok"]


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.OK])
def test_a_failure_is_a_row_and_is_not_run_again(store: RunStore, outcome: Outcome) -> None:
    sweep(CASES[:2], store, FakeLauncher(lambda case: outcome), predict, Silent())
    again = FakeLauncher()
    measurements = sweep(CASES[:2], store, again, predict, Silent())
    assert again.ran == []
    assert [measurement.outcome for measurement in measurements] == [outcome, outcome]
    assert written(store) == ["estimate 0", f"measurement 0 {outcome}", "estimate 1", f"measurement 1 {outcome}"]


def test_a_sweep_cut_short_goes_on_where_it_stopped(store: RunStore) -> None:
    def interrupted(case: Case) -> Outcome:
        if case.recipe.seed == 1:
            raise KeyboardInterrupt
        return Outcome.OK

    with pytest.raises(KeyboardInterrupt):
        sweep(CASES, store, FakeLauncher(interrupted), predict, Silent())
    assert written(store) == ["estimate 0", "measurement 0 ok", "estimate 1"]
    launcher, told = FakeLauncher(), Told()
    measurements = sweep(CASES, RunStore.open(store.folder), launcher, predict, told)
    assert [case_id for case_id, _ in launcher.ran] == IDS[1:]
    assert told.lines[0] == "begin 1/3"
    assert [measurement.case_id for measurement in measurements] == IDS
    assert list(finished(store)) == IDS


def test_a_case_named_twice_runs_once(store: RunStore) -> None:
    launcher = FakeLauncher()
    measurements = sweep([CASES[0], CASES[1], CASES[0]], store, launcher, predict, Silent())
    assert [case_id for case_id, _ in launcher.ran] == IDS[:2]
    assert [measurement.case_id for measurement in measurements] == [IDS[0], IDS[1], IDS[0]]


def test_other_cases_of_the_store_do_not_count(store: RunStore) -> None:
    sweep(CASES[:1], store, FakeLauncher(), predict, Silent())
    told = Told()
    sweep(CASES[1:2], store, FakeLauncher(), predict, told)
    assert told.lines[0] == "begin 0/1"


def test_a_formula_that_fails_is_a_row_too(store: RunStore) -> None:
    def broken(case: Case) -> EstimateRow:
        raise ZeroDivisionError("no heads\nat all")

    [measurement] = sweep(CASES[:1], store, FakeLauncher(), broken, Silent())
    assert measurement.outcome is Outcome.OK
    [row] = store.rows(EstimateRow)
    assert row == EstimateRow(IDS[0], CASES[0].to_mapping(), reason="ZeroDivisionError: no heads")


def test_several_launches_go_round_by_round(tmp_path: Path) -> None:
    """All cases once, then all again; the second does not end well and is left; a sweep cut short goes on."""
    store = RunStore.create(tmp_path)
    launcher = FakeLauncher(lambda case: Outcome.OOM if case.recipe.seed == 1 else Outcome.OK)
    told = Told()
    sweep(CASES[:1], store, launcher, predict, Silent(), launches=2)
    sweep(CASES, store, launcher, predict, told, launches=3)
    ids = [case_id for case_id, _ in launcher.ran]
    assert ids == [IDS[0], IDS[0], IDS[1], IDS[2], IDS[2], IDS[0], IDS[2]]
    assert told.lines[0] == "begin 2/9"
    assert [row.measurement.case_id for row in store.rows(MeasurementRow)] == ids
    assert len(store.rows(EstimateRow)) == 3
