"""Real torchrun, ranks that misbehave: every end is told apart, no sample is lost, no process is left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from suite.batches import BatchedLauncher
from suite.case import Case, case_from
from suite.environment import ROOT, available_cores, oom_kills
from suite.launch import Launcher
from suite.parse import SpecError
from suite.progress import Silent
from suite.record import Component, Measurement, Outcome, Quantity
from suite.store import EstimateRow, MeasurementRow, RunStore
from suite.sweep import sweep

MODULE = "tests.e2e.fake_worker"


def case_of(behaviour: str, nodes: int = 1) -> Case:
    """Two ranks, two steps, and then `behaviour`."""
    return case_from(
        {
            "model": {"layers": 1},
            "layout": {"dp": 2},
            "cluster": {"nodes": nodes},
            "recipe": {"steps": 2, "data": behaviour},
        }
    )


def launcher(timeout_s: float = 60, hang_s: float = 30) -> Launcher:
    return Launcher(MODULE, timeout_s=timeout_s, hang_s=hang_s, grace_s=1)


def predict(case: Case) -> EstimateRow:
    return EstimateRow(case.case_id, case.to_mapping())


def left_alive(folder: Path) -> list[str]:
    """Processes of a run in `folder` that still live: torchrun, guards and ranks name it, detached ones are noted."""
    detached = {int(path.name.removeprefix("detached-")) for path in folder.rglob("detached-*")}
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        is_ours = str(folder) in line or (process.info["pid"] in detached and "time.sleep(600)" in line)
        if is_ours and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found


def wait_until_hanging(folder: Path) -> None:
    """Until both ranks wait for ever."""
    deadline = time.monotonic() + 60
    while len(list(folder.rglob("detached-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


#: a program that sweeps: `python -c DRIVER store behaviour...`
DRIVER = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from suite.case import case_from
from suite.launch import Launcher
from suite.progress import Silent
from suite.store import EstimateRow, RunStore
from suite.sweep import sweep
recipes = [{{"steps": 2, "data": data}} for data in sys.argv[2:]]
cases = [case_from({{"model": {{"layers": 1}}, "layout": {{"dp": 2}}, "recipe": recipe}}) for recipe in recipes]
sweep(cases, RunStore(Path(sys.argv[1])), Launcher({MODULE!r}, grace_s=1),
      lambda case: EstimateRow(case.case_id, case.to_mapping()), Silent())
"""


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path)


@pytest.fixture
def drivers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that a test starts; they are ended if it fails."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for driver in started:
        driver.kill()
        driver.wait()


def measured(store: RunStore) -> list[tuple[str, Outcome]]:
    rows = store.rows(MeasurementRow)
    return [(row.case["recipe"]["data"], row.measurement.outcome) for row in rows]


@pytest.mark.e2e
def test_a_sweep_killed_with_kill_9_leaves_no_process_and_goes_on(
    store: RunStore, drivers: list[subprocess.Popen[bytes]]
) -> None:
    drivers.append(subprocess.Popen([sys.executable, "-c", DRIVER, str(store.folder), "ok", "hang-once"]))
    wait_until_hanging(store.folder)
    assert len(left_alive(store.folder)) >= 8  # the driver, guard, torchrun, and twice guard, rank, detached
    drivers[0].send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 8
    while (alive := left_alive(store.folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive == []
    assert measured(store) == [("ok", Outcome.OK)]

    cases = [case_of("ok"), case_of("hang-once")]
    first, second = sweep(cases, store, launcher(), predict, Silent())
    assert measured(store) == [("ok", Outcome.OK), ("hang-once", Outcome.OK)]
    assert [row.case_id for row in store.rows(EstimateRow)] == [cases[index].case_id for index in (0, 1, 1)]
    for measurement in (first, second):
        check_complete(measurement)


def check_complete(measurement: Measurement) -> None:
    """Everything that the ranks of an undisturbed case write."""
    assert measurement.reason == ""
    assert measurement.ranks == (0, 1)
    assert measurement.values(Quantity.STEP_TIME, rank=1) == [0.25, 1.25]
    assert measurement.values(Quantity.MEMORY, component=Component.PARAMETERS) == [1e6, 1e6]
    assert len(measurement.samples) == 6
    assert measurement.stderr_tails == {0: "rank 0 has finished", 1: "rank 1 has finished"}
    assert measurement.environment["threads"] == str(max(1, available_cores() // 2))
    assert measurement.environment["other_cores"] >= 0
    assert measurement.environment["torch"] is False  # the stand-in measures what a launch alone costs
    assert 0 < measurement.wall_seconds < 60


@pytest.mark.e2e
def test_ctrl_c_ends_the_ranks_and_records_nothing(store: RunStore, drivers: list[subprocess.Popen[bytes]]) -> None:
    command = [sys.executable, "-c", DRIVER, str(store.folder), "hang"]
    drivers.append(subprocess.Popen(command, stderr=subprocess.PIPE))
    wait_until_hanging(store.folder)
    drivers[0].send_signal(signal.SIGINT)
    _, stderr = drivers[0].communicate(timeout=15)
    assert left_alive(store.folder) == []
    assert stderr.decode().splitlines()[-1] == "KeyboardInterrupt"
    assert measured(store) == []
    assert len(store.rows(EstimateRow)) == 1


KILLED = (
    (Outcome.OOM, "rank 1: killed (signal 9): probably out of memory")
    if oom_kills() is None
    else (Outcome.FAILED, "rank 1: killed (signal 9), and not by the kernel's out-of-memory killer")
)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "behaviour, limits, outcome, reason",
    [
        ("error@1", {}, Outcome.FAILED, "rank 1: exit status 1: ValueError: the weights"),
        ("oom@1", {}, Outcome.OOM, "rank 1: out of memory: asked for 4611686018427387904 bytes"),
        ("kill@1", {}, *KILLED),
        (
            *("hang@1", {"hang_s": 5}, Outcome.HANG),
            "no new row from any rank for 5 s; last: rank 0 'step 1', rank 1 'step 1'",
        ),
        (
            *("slow@1", {"timeout_s": 8, "hang_s": 6}, Outcome.TIMEOUT),
            "still running after 8 s; last: rank 0 'step 1', rank 1 'slow step ",
        ),
    ],
)
def test_the_ends_of_a_run(
    behaviour: str, limits: dict[str, float], outcome: Outcome, reason: str, tmp_path: Path
) -> None:
    measurement = launcher(**limits).run(case_of(behaviour), tmp_path)
    assert left_alive(tmp_path) == []
    assert (measurement.outcome, measurement.reason[: len(reason)]) == (outcome, reason)
    assert "\n" not in measurement.reason
    for rank in (0, 1):  # what was written before the end is kept
        assert measurement.values(Quantity.STEP_TIME, rank=rank) == [0.25, 1.25]
    assert len(measurement.samples) == 6
    if behaviour == "error@1":
        lines = measurement.stderr_tails[1].splitlines()
        assert lines[-1] == "are upside down"
        assert 10 < len(lines) <= 20


@pytest.mark.unit
def test_a_case_for_two_machines_is_skipped(tmp_path: Path) -> None:
    measurement = launcher().run(case_of("ok", nodes=2), tmp_path / "case")
    assert measurement.outcome is Outcome.SKIPPED
    assert measurement.reason == (
        "cluster.nodes: 2 machines; give --rdzv HOST:PORT and run the same command on each, or run on each:"
        " torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint HOST:PORT"
        f" -m {MODULE} CASE.json --out FOLDER"
    )
    assert not (tmp_path / "case").exists()


@pytest.mark.unit
@pytest.mark.parametrize(
    "limits, message",
    [
        ({"timeout_s": 0}, "launcher.timeout_s: must be positive, got 0"),
        ({"hang_s": -1}, "launcher.hang_s: must be positive, got -1"),
        ({"look_s": 0.1}, "launcher.look_s: must be at least 0.2, got 0.1"),
    ],
)
def test_limits_that_make_no_sense(limits: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        Launcher(MODULE, **limits)  # type: ignore[arg-type]
    assert str(refused.value) == message


@pytest.mark.unit
def test_starting_cases_leaves_torch_alone() -> None:
    code = "import sys, suite.launch, suite.sweep, suite.guard; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "False"


def test_cases_share_launches_and_each_keeps_its_own_end(tmp_path: Path) -> None:
    cases = [case_of("ok"), case_of("oom"), replace(case_of("ok"), model=case_of("ok").model.__class__(layers=2))]
    shared = BatchedLauncher(launcher(), cases)
    store = RunStore.create(tmp_path)
    measured = sweep(cases, store, shared, predict, Silent())
    assert [item.outcome for item in measured] == [Outcome.OK, Outcome.OOM, Outcome.OK]
    assert "out of memory" in measured[1].reason
    assert all(item.values(Quantity.STEP_TIME, rank=1) == [0.25, 1.25] for item in measured)
    launches = list((store.folder / "launch" / "logs").glob("*"))
    assert len(launches) == 1  # of the last launch: the third case alone, after the first two
    assert len(json.loads((store.folder / "launch" / "cases.json").read_text())) == 1
    assert not left_alive(tmp_path)
