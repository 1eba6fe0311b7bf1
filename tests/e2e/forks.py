"""Verbs in forks of one process that has their modules loaded: the seconds of their imports are paid once.

A fork has its own streams, folder and exit status, as a process that a user starts; what it does not have is a fresh
interpreter: what is said of imports, of variables that Python reads as it starts, and of Ctrl-C wants `commands.run`.
Run as a program this module is that process: a request a line on standard input, an exit status a line on the output.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite.environment import ROOT
from tests.e2e.commands import RUN_ALL, variables

STREAMS = ("stdin", "stdout", "stderr")


@dataclass(frozen=True)
class Forks:
    """The process that forks."""

    process: subprocess.Popen[str]

    def run(self, *words: str, cwd: Path = ROOT, stdin: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end, with `changes` to its variables; its output as text."""
        requests, answers = self.process.stdin, self.process.stdout
        assert requests is not None
        assert answers is not None
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder) / name for name in STREAMS}
            files["stdin"].write_text(stdin, encoding="utf-8")
            paths = {name: str(path) for name, path in files.items()}
            asked = {"words": words, "cwd": str(cwd), "files": paths, "variables": changes}
            print(json.dumps(asked), file=requests, flush=True)
            status = int(answers.readline())
            out, err = (files[name].read_text(encoding="utf-8", errors="replace") for name in STREAMS[1:])
        return subprocess.CompletedProcess([*words], status, out, err)


@contextmanager
def forks() -> Iterator[Forks]:
    """Start the process; it ends with its standard input."""
    line = [sys.executable, "-m", "tests.e2e.forks"]
    with subprocess.Popen(
        line, cwd=ROOT, env=variables(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Forks(process)


def serve() -> None:
    """Fork for every request and answer with the fork's exit status; the streams of this process are for the forks."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    sys.argv = [str(RUN_ALL)]
    import reports.bench  # noqa: F401  (what most verbs load, once for all)
    import run_all  # here: it names itself by sys.argv

    gc.freeze()  # forks share what they do not touch
    while line := requests.readline():
        child = os.fork()
        if child == 0:
            status = _answered(run_all.main, json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # taking apart what is shared would be most of a fork's work
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _answered(main: Callable[[Sequence[str]], int], asked: dict[str, Any]) -> int:
    """The exit status of the verb in this process; a traceback and 1, as Python ends, where it raises."""
    os.chdir(asked["cwd"])
    os.environ.update(asked["variables"])
    for number, name in enumerate(STREAMS):
        os.dup2(os.open(asked["files"][name], os.O_RDWR | os.O_CREAT), number)
    try:
        return main(asked["words"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    serve()
