"""One run on several machines: ranks and machines that are lost, that hang, or were given something else."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from suite.case import Case, case_from
from suite.environment import ROOT, oom_kills
from suite.launch import Launcher
from suite.nodes import Recorder, recording
from suite.progress import Silent
from suite.ranklog import read_rank
from suite.record import Measurement, Outcome, Quantity
from suite.rendezvous import Endpoint, free_port
from suite.store import EstimateRow, MeasurementRow, RunStore
from suite.sweep import sweep
from tests.e2e.commands import refusal, run, variables
from tests.e2e.forks import Forks
from tests.e2e.test_launch import left_alive

pytestmark = pytest.mark.e2e

MODULE = "tests.e2e.fake_worker"
HANG_S = 10.0
#: a machine that follows: `python -c FOLLOWER endpoint case...`
FOLLOWER = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from suite.case import case_from
from suite.follow import follow, following
from suite.launch import Launcher
from suite.rendezvous import Endpoint
cases = {{case.case_id: case for case in map(case_from, map(json.loads, sys.argv[2:]))}}
with following(Endpoint.parse(sys.argv[1], "endpoint"), cases, 30) as (link, node, nodes):
    follow(Launcher({MODULE!r}, grace_s=1, hang_s=30), link, cases, print)
"""

Start = Callable[..., "subprocess.Popen[str]"]


def case_of(behaviour: str, steps: int = 2) -> Case:
    """A rank on each of two machines."""
    recipe = {"steps": steps, "data": behaviour}
    return case_from({"model": {"layers": 1}, "layout": {"dp": 2}, "cluster": {"nodes": 2}, "recipe": recipe})


def predict(case: Case) -> EstimateRow:
    return EstimateRow(case.case_id, case.to_mapping())


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint("127.0.0.1", free_port("127.0.0.1"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a program whose temporary files lie in the test's folder; ended if the test fails."""
    started: list[subprocess.Popen[str]] = []

    def begin(words: list[str], **options: Any) -> subprocess.Popen[str]:
        pipe, environment = subprocess.PIPE, variables(TMPDIR=str(tmp_path), OMP_NUM_THREADS="1")
        started.append(subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment, **options))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def follower(start: Start, endpoint: Endpoint) -> Callable[..., subprocess.Popen[str]]:
    """Starts a machine that follows, with these cases."""

    def begin(*cases: Case) -> subprocess.Popen[str]:
        texts = [json.dumps(case.to_mapping()) for case in cases]
        return start([sys.executable, "-c", FOLLOWER, str(endpoint), *texts], cwd=ROOT)

    return begin


def recorder(endpoint: Endpoint) -> contextlib.AbstractContextManager[Recorder]:
    """The recording machine."""
    return recording(endpoint, 2, Launcher(MODULE, timeout_s=60, hang_s=30, grace_s=1), 30)


def when_all_speak(folder: Path, act: Callable[[], object]) -> None:
    """Act once both ranks of the case in a folder have written rows there, meanwhile let the test go on."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not all(read_rank(folder, rank).heartbeat for rank in (0, 1)):
            time.sleep(0.1)
        act()

    threading.Thread(target=watch, daemon=True).start()


def assert_all_ended(folder: Path) -> None:
    """No process of any machine is left; those of a killed one have a few seconds: their guards act by themselves."""
    deadline = time.monotonic() + 8
    while (alive := left_alive(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive == []


def check_samples(measurement: Measurement, *ranks: int) -> None:
    """All rows that these ranks wrote before the end, whichever machine they ran on."""
    assert set(ranks) <= set(measurement.ranks)
    for rank in ranks:
        assert measurement.values(Quantity.STEP_TIME, rank=rank) == [0.25, 1.25]


KILLED = (
    (Outcome.OOM, "killed (signal 9): probably out of memory")
    if oom_kills() is None
    else (Outcome.FAILED, "killed (signal 9), and not by the kernel's out-of-memory killer")
)


# --- ranks and machines that are lost ------------------------------------------------------------------------


def test_killed_and_hung_ranks_and_a_killed_machine_are_named(
    tmp_path: Path, endpoint: Endpoint, follower: Callable[..., subprocess.Popen[str]]
) -> None:
    """Whichever machine rank 0 is on: the two kills are one here and one there."""
    store = RunStore.create(tmp_path)
    kills, hang, lost, never = [case_of("kill@0"), case_of("kill@1")], case_of("hang@1"), case_of("slow"), case_of("ok")
    other = follower(*kills, hang, lost, never)
    when_all_speak(store.case_folder(lost.case_id), lambda: other.send_signal(signal.SIGKILL))
    with recorder(endpoint) as runner:
        quick = dataclasses.replace(runner, settle_s=1.0)
        killed = [quick.run(case, tmp_path / f"kill-{rank}") for rank, case in enumerate(kills)]
        impatient = dataclasses.replace(runner, launcher=dataclasses.replace(runner.launcher, hang_s=HANG_S))
        hung = impatient.run(hang, tmp_path / "hang")
        with pytest.raises(ConnectionError) as gone:
            sweep([lost, never], store, quick, predict, Silent())

    for rank, measurement in enumerate(killed):
        assert (measurement.outcome, measurement.reason) == (KILLED[0], f"rank {rank}: {KILLED[1]}")
        check_samples(measurement, rank)  # the other may not even have begun
    assert hung.outcome is Outcome.HANG
    assert hung.reason.startswith(f"no new row from any rank for {HANG_S:g} s; last: rank 0 'step 1', rank 1 'step 1'")
    assert "; silent for longest: rank " in hung.reason
    [recorded] = [row.measurement for row in store.rows(MeasurementRow)]  # what was not begun is not recorded
    assert recorded.outcome is Outcome.FAILED
    assert recorded.reason in {f"rank {rank}: node 1 (127.0.0.1) is gone (connection closed)" for rank in (0, 1)}
    assert str(gone.value) == (
        "node 1 (127.0.0.1) is gone (connection closed); run the same command on it again, and go on here with --resume"
    )
    check_samples(hung, 0, 1)
    check_samples(recorded, 0, 1)
    assert_all_ended(tmp_path)


def test_a_recording_machine_that_goes_ends_the_others_ranks(
    tmp_path: Path, endpoint: Endpoint, follower: Callable[..., subprocess.Popen[str]]
) -> None:
    case = case_of("slow")
    other = follower(case)
    when_all_speak(tmp_path / "case", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_there(recorder(endpoint), case, tmp_path / "case")
    _, stderr = other.communicate(timeout=20)
    assert stderr.splitlines()[-1] == "ConnectionError: connection closed"
    assert_all_ended(tmp_path)


def run_there(machines: contextlib.AbstractContextManager[Recorder], case: Case, folder: Path) -> Measurement:
    with machines as runner:
        return runner.run(case, folder)


# --- machines that were given something else -----------------------------------------------------------------


def test_a_machine_with_other_cases_is_told_by_both_ids(
    tmp_path: Path, endpoint: Endpoint, follower: Callable[..., subprocess.Popen[str]]
) -> None:
    mine, theirs = case_of("ok", steps=2), case_of("ok", steps=3)
    follower(theirs)
    with recorder(endpoint) as runner:
        measurement = runner.run(mine, tmp_path / "case")
    assert measurement.outcome is Outcome.FAILED
    assert measurement.reason == (
        f"case: node 1 (127.0.0.1) has not case {mine.case_id} of node 0; its cases: {theirs.case_id};"
        " give every machine the same ones"
    )
    assert not (tmp_path / "case").exists()


def test_machines_that_do_not_come(endpoint: Endpoint, verbs: Forks) -> None:
    launcher = Launcher(MODULE)
    with pytest.raises(OSError) as refused, recording(endpoint, 3, launcher, 0.3):
        pass
    assert str(refused.value) == (
        f"--rdzv: 1 of 3 machines met at {endpoint} within 0.3 s; run the same command on each of them"
    )
    done = verbs.run("bench", "--model", "gpt-1m", "--fsdp", "2", "--nodes", "2", "--timeout", "1",
                     "--rdzv", str(endpoint), "--node-rank", "1")  # fmt: skip
    assert refusal(done) == f"--rdzv: no machine records at {endpoint} within 1 s (connection refused)"


@pytest.mark.parametrize(
    "words, message",
    [
        ("--nodes 2 --rdzv nowhere", "--rdzv: 'nowhere' is not HOST:PORT; give the recording machine's name or"),
        ("--nodes 2 --rdzv ::1:29500", "--rdzv: '::1:29500' is not HOST:PORT;"),
        ("--nodes 2 --rdzv no.such.host.invalid:29500", "--rdzv: 'no.such.host.invalid' is no host's name or address"),
        ("--rdzv localhost:29500", "--rdzv: every case has cluster.nodes 1; give --nodes too"),
        ("--nodes 2 --node-rank 1", "--node-rank: given without --rdzv; give both"),
        ("--nodes 2 --rdzv localhost:29500 --node-rank 2", "--node-rank: 2 is none of 0 to 1; 0 records"),
        ("--emit pbs", "--emit: 'pbs' is not known; known: slurm"),
        ("--emit slurm --node-rank 1", "--emit: given beside --node-rank; the file says where and what"),
    ],
)
def test_flags_that_make_no_sense(words: str, message: str, tmp_path: Path, verbs: Forks) -> None:
    done = verbs.run("bench", "--model", "gpt-1m", "--fsdp", "2", *words.split(), cwd=tmp_path)
    assert refusal(done).startswith(message)
    assert list(tmp_path.iterdir()) == []


# --- a cluster's queue ---------------------------------------------------------------------------------------


def test_an_sbatch_file_trains_its_cases(tmp_path: Path) -> None:
    """With an srun that, as Slurm's does, hands its standard input on."""
    said = run(
        *("bench", "--model", "gpt-1m", "--seq-len", "16", "--steps", "2", "--tokenizer", "byte"),
        *("--runs", str(tmp_path / "my runs"), "--timeout", "60", "--emit", "slurm", "--json"),
    )
    script = tmp_path / "job.sh"
    script.write_text(json.loads(said.stdout)["text"])
    assert not (tmp_path / "my runs").exists()  # nothing was run yet
    stubs = {"srun": 'exec "$@"', "python": f'exec {sys.executable} "$@"'}
    for name, line in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", script], cwd=tmp_path, env=variables(PATH=path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "my runs").iterdir()
    [recorded] = RunStore.open(folder).rows(MeasurementRow)
    assert recorded.measurement.outcome is Outcome.OK
    assert len(recorded.measurement.values(Quantity.STEP_TIME)) == 2
