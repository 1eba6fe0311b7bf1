"""`bench` for real: cases trained end to end, and every way in which a run can be cut short."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from suite.case import Case, case_from
from suite.environment import oom_kills
from suite.record import Measurement, Outcome, Quantity
from suite.store import EstimateRow, MeasurementRow, RunRow, RunStore
from tests.e2e.commands import command, document, processes, run, variables, workers
from tests.unit.report_samples import finished

pytestmark = pytest.mark.e2e

ENDLESS = 1_000_000  # steps: until somebody ends it
HANG_S = 25  # longer than torchrun and the ranks' imports take on a busy machine


def case_of(layout: dict[str, int], model: str = "gpt-1m", steps: int = 5, seed: int = 1, **workload: Any) -> Case:
    """A case of seconds: short sequences, no tokenizer to train."""
    recipe = {"steps": steps, "warmup_steps": 1, "tokenizer": "byte", "seed": seed}
    workload = {"seq_len": 32, "precision": "fp32", **workload}
    return case_from({"model": model, "layout": layout, "workload": workload, "recipe": recipe})


def begun(root: Path, *cases: Case) -> RunStore:
    """A run that was stopped before its first case, without rates: going on with it starts at once."""
    store = RunStore.create(root)
    store.append(RunRow("2026-08-02", "mine", tuple(case.to_mapping() for case in cases)))
    return store


def measurements(store: RunStore) -> dict[str, Measurement]:
    """What is recorded, by case id; a case that was measured twice fails."""
    rows = store.rows(MeasurementRow)
    found = {row.measurement.case_id: row.measurement for row in rows}
    assert len(found) == len(rows)
    return found


def wait_for(condition: Callable[[], object], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.05)


@pytest.fixture
def going_on() -> Iterator[Callable[[RunStore], subprocess.Popen[str]]]:
    """Starts `bench --resume` on a run and leaves it running; ended if the test fails."""
    started: list[subprocess.Popen[str]] = []

    def start(store: RunStore) -> subprocess.Popen[str]:
        words = command("bench", "--resume", str(store.folder), "--hang", str(HANG_S), "--json")
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=variables()))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def steps_seen(store: RunStore, case: Case, rank: int = 0) -> int:
    """Steps that a rank of a running case has written down."""
    rows = store.case_folder(case.case_id) / f"rank-{rank}.jsonl"
    return rows.read_text().count(Quantity.STEP_TIME.value) if rows.exists() else 0


def rank_process(store: RunStore, case: Case, rank: int) -> psutil.Process:
    """The process of a rank."""
    ranks = workers(store.case_folder(case.case_id))
    return next(process for process in ranks if process.environ()["RANK"] == str(rank))


# --- a run that ends -----------------------------------------------------------------------------------------


def test_two_cases_are_trained_predicted_and_reported(tmp_path: Path) -> None:
    eager = case_of({}, "llama-1m", attention="eager", precision="bf16-mixed", micro_batch=4, micro_batches=2)
    cases = [eager, case_of({"dp": 2})]
    mine = tmp_path / "two <b>cases.json"
    mine.write_text(json.dumps([case.to_mapping() for case in cases]))
    done = run("bench", "--case", str(mine), "--runs", str(tmp_path / "my runs"), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[2/2] gpt-1m dp2 fp32 flash, 2 ranks: ok" in done.stderr
    said = document(done)

    folder = Path(said["folder"])
    assert folder.parent == tmp_path / "my runs"
    assert said["suite"] == mine.name
    assert said["summary"]["outcomes"] == {"ok": 2}
    assert abs(said["summary"]["peak_memory_error"]["worst"]) <= 0.01
    assert 0 < said["summary"]["state_rows"] == said["summary"]["state_rows_exact"]
    for of, row in zip(cases, said["cases"], strict=True):
        assert (row["case_id"], row["outcome"], row["world_size"]) == (of.case_id, "ok", of.layout.world_size)
        assert 0 < row["state_rows"] == row["state_rows_exact"]
        for quantity in ("peak_memory_bytes", "step_seconds", "tokens_per_second"):
            assert row[quantity]["measured"] > 0
            assert row[quantity]["predicted"] > 0
        assert abs(row["peak_memory_bytes"]["error"]) <= 0.01
        for component in ("parameters", "optimizer"):
            assert row["components_bytes"][component]["error"] == 0
        assert 3 < row["loss_nats"] < 12
    assert {"report.html", "report.md", "records.jsonl"} <= {path.name for path in folder.iterdir()}
    assert "two &lt;b&gt;cases.json" in (folder / "report.html").read_text()
    store = RunStore.open(folder)
    assert [case_from(case) for case in store.rows(RunRow)[0].cases] == cases
    assert [len(row.memory) for row in store.rows(EstimateRow)] == [1, 2]
    assert processes(tmp_path) == []


# --- runs that are cut short ---------------------------------------------------------------------------------


def test_a_killed_and_a_stopped_rank_are_told_and_the_sweep_goes_on(
    tmp_path: Path, going_on: Callable[[RunStore], subprocess.Popen[str]]
) -> None:
    killed, stopped = (case_of({"dp": 2}, steps=ENDLESS, seed=seed) for seed in (1, 2))
    store = begun(tmp_path, killed, stopped)
    bench = going_on(store)

    wait_for(lambda: steps_seen(store, killed, rank=1) > 2, "steps of the first case")
    rank_process(store, killed, 1).kill()
    wait_for(lambda: steps_seen(store, stopped, rank=1) > 2, "steps of the second case")
    rank_process(store, stopped, 1).send_signal(signal.SIGSTOP)
    stdout, stderr = bench.communicate(timeout=120)

    assert bench.returncode == 1  # done, but not every case ended well
    found = measurements(store)
    expected = Outcome.OOM if oom_kills() is None else Outcome.FAILED
    assert found[killed.case_id].outcome is expected
    assert found[killed.case_id].reason.startswith("rank 1: killed (signal 9)")
    assert found[stopped.case_id].outcome is Outcome.HANG
    assert found[stopped.case_id].reason.startswith(f"no new row from any rank for {HANG_S} s; last: rank 0 ")
    for measurement in found.values():  # what was written before the end is kept
        assert len(measurement.values(Quantity.STEP_TIME, rank=1)) > 2
    assert [case["outcome"] for case in json.loads(stdout)["cases"]] == [expected.value, "hang"]
    assert "[1/2] gpt-1m dp2 fp32 flash, 2 ranks: " in stderr
    assert "Traceback" not in stderr
    assert (store.folder / "report.html").exists()
    assert processes(tmp_path) == []


def test_a_run_that_is_interrupted_and_then_killed_goes_on_to_its_end(
    tmp_path: Path, going_on: Callable[[RunStore], subprocess.Popen[str]]
) -> None:
    first, second = case_of({}, seed=1), case_of({}, seed=2, steps=8)
    store = begun(tmp_path / "with space", first, second)
    done = finished(first, 0.0, 0.5).measurement
    assert done is not None
    store.append(MeasurementRow(first.to_mapping(), done))
    before = store.path.read_bytes()

    bench = going_on(store)
    wait_for(lambda: steps_seen(store, second), "the second case")
    bench.send_signal(signal.SIGINT)
    stdout, stderr = bench.communicate(timeout=30)
    assert (bench.returncode, stdout) == (130, "")
    *_, resume, last = stderr.splitlines()
    assert resume.endswith(f"bench --resume '{store.folder}'")
    assert last == "shardscope: interrupted"
    assert "Traceback" not in stderr
    assert processes(tmp_path) == []
    assert set(measurements(store)) == {first.case_id}

    bench = going_on(store)
    wait_for(lambda: workers(store.case_folder(second.case_id)), "the second case's rank")
    bench.kill()
    bench.communicate()
    wait_for(lambda: not processes(tmp_path), "the end of every process", seconds=15)
    assert set(measurements(store)) == {first.case_id}
    assert store.path.read_bytes().startswith(before)  # nothing already written is lost

    bench = going_on(store)
    stdout, stderr = bench.communicate(timeout=120)
    assert bench.returncode == 0, stderr
    assert [case["outcome"] for case in json.loads(stdout)["cases"]] == ["ok", "ok"]
    found = measurements(store)
    assert found[first.case_id] == done  # it was not run again
    assert found[second.case_id].outcome is Outcome.OK
    assert not store.case_folder(first.case_id).exists()
    assert len(found[second.case_id].values(Quantity.STEP_TIME)) == 8
