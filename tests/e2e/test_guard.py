"""The guard, without torchrun: it ends what it started, in every way that it can be asked to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from suite.environment import ROOT

pytestmark = pytest.mark.e2e

GUARD = [sys.executable, "-m", "suite.guard"]
#: writes its pid to the file that its first argument names
NOTE = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid()));"
#: starts a process that leaves its session, ignores SIGTERM and loses its parent (at once, or by the guard's doing)
STRAY = f"""
import os, signal, subprocess, sys, time
code = "import signal; signal.signal(15, signal.SIG_IGN); {NOTE} time.sleep(600)"
subprocess.Popen([sys.executable, "-c", code, sys.argv[1]], start_new_session=True)
while not os.path.exists(sys.argv[1]): time.sleep(0.01)
if len(sys.argv) > 2: time.sleep(600)
"""


def wait_for_pid(path: Path) -> int:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path} was never written")


def is_gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    "code, status", [("pass", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_status_is_the_commands(code: str, status: int, tmp_path: Path) -> None:
    command = [*GUARD, "--exits", str(tmp_path), "--", sys.executable, "-c", code]
    before = time.time()
    assert subprocess.run(command, cwd=ROOT, env={**os.environ, "RANK": "2"}).returncode == status
    row = json.loads((tmp_path / "exit-2.json").read_text())
    assert (row["rank"], row["code"]) == (2, -9 if status == 137 else status)
    assert before < row["time"] < time.time()


def test_a_command_that_is_not_there() -> None:
    ended = subprocess.run([*GUARD, "--", "/no/such/program"], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (127, "/no/such/program: No such file or directory\n")


def test_what_the_command_left_behind_ends_with_it(tmp_path: Path) -> None:
    command = [*GUARD, "--grace", "0.2", "--", sys.executable, "-c", STRAY, str(tmp_path / "pid")]
    assert subprocess.run(command, cwd=ROOT, timeout=20).returncode == 0
    assert is_gone(wait_for_pid(tmp_path / "pid"), within_s=0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_asked_to_end(number: signal.Signals, tmp_path: Path) -> None:
    command = [*GUARD, "--grace", "0.2", "--", sys.executable, "-c", STRAY, str(tmp_path / "pid"), "stay"]
    guard = subprocess.Popen(command, cwd=ROOT)
    pid = wait_for_pid(tmp_path / "pid")
    guard.send_signal(number)
    assert guard.wait(10) == 128 + signal.SIGTERM  # how its command ended
    assert is_gone(pid, within_s=0.1)


def test_killed_itself_its_command_dies(tmp_path: Path) -> None:
    command = [*GUARD, "--", sys.executable, "-c", f"{NOTE} time.sleep(600)", str(tmp_path / "pid")]
    guard = subprocess.Popen(command, cwd=ROOT)
    pid = wait_for_pid(tmp_path / "pid")
    guard.kill()
    guard.wait()
    assert is_gone(pid)


def test_a_parent_that_is_dead_already() -> None:
    command = [*GUARD, "--parent", "1", "--", sys.executable, "-c", "print('ran')"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert (ended.returncode, ended.stdout) == (143, b"")
