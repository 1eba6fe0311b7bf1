"""Runs the command line as a user does: `python run_all.py ...` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from suite.environment import ROOT

RUN_ALL = ROOT / "run_all.py"


def command(*words: str) -> list[str]:
    """The command line of a verb."""
    return [sys.executable, str(RUN_ALL), *words]


def variables(**changes: str) -> dict[str, str]:
    """This process's variables without those that change how a terminal is written to, and with `changes`.

    Idle threads sleep instead of spinning: tests share their cores with whatever else runs.
    """
    dropped = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TERM", "PYTHONIOENCODING", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if name not in dropped} | {
        "OMP_WAIT_POLICY": "passive",
        **changes,
    }


def run(*words: str, cwd: Path = ROOT, stdin: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end; its output as text."""
    return subprocess.run(
        command(*words),
        cwd=cwd,
        env=variables(**changes),
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=240,
    )


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """The one JSON document on standard output; nothing else may be there."""
    read, end = json.JSONDecoder(parse_constant=_refuse).raw_decode(done.stdout)
    assert done.stdout[end:] == "\n", done.stdout[end : end + 200]
    return read


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error of a verb that refused: exit status 2, nothing on standard output."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("shardscope: ")
    assert "Traceback" not in done.stderr
    return done.stderr.removeprefix("shardscope: ").rstrip("\n")


def workers(folder: Path) -> list[psutil.Process]:
    """The live ranks of a run in `folder`: processes that execute the worker, guards left out."""
    return [process for process in processes(folder) if _is_worker(process)]


def processes(folder: Path) -> list[psutil.Process]:
    """Every live process whose command line names `folder`: the verb itself, guards, torchrun, ranks."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(folder) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def _is_worker(process: psutil.Process) -> bool:
    words = process.info["cmdline"]
    return "parallelism.worker" in words and "suite.guard" not in words and "torch.distributed.run" not in words


def _refuse(word: str) -> float:
    raise AssertionError(f"{word} is not JSON")
