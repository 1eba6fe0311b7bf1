"""Runs a command and leaves none of its processes behind: `python -m suite.guard [options] -- COMMAND...`

The guard ends everything below it when the command ends, when it is asked to (SIGTERM, SIGINT, SIGHUP),
and when its own parent dies in any way, `kill -9` included. torchrun gives each rank a session of its own,
out of reach of a process group's signal; so the guard adopts orphans and walks the process tree instead.
Linux only (prctl). Two stand in a run: one above torchrun, and one above each rank, which writes down
how the rank ended, because torchrun tells that to its log alone.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NOT_STARTED = 127
#: after SIGKILL, seconds until a process that the kernel cannot end is left behind
ABANDON_S = 5.0


def main(arguments: Sequence[str]) -> int:
    """Run the command under guard; the exit status is the command's, 128 + n where signal n ended it."""
    options, command = _options(arguments)
    # Blocked first and taken by sigwait: no handler runs at a bad time, none is lost, and nothing polls.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *ENDINGS})
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if options.parent and os.getppid() != options.parent:
        return 128 + signal.SIGTERM  # the parent died before the kernel was asked to tell
    try:
        # preexec_fn is unsafe in a process with threads; this one has none.
        child = subprocess.Popen(command, preexec_fn=_before_exec)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_STARTED
    codes, ended_at = wait_for(child.pid), time.time()
    end_descendants(options.grace, codes)
    code = codes.get(child.pid, -signal.SIGKILL)
    if options.exits:
        write_exit(Path(options.exits), int(os.environ["RANK"]), code, ended_at)
    return code if code >= 0 else 128 - code


def wait_for(pid: int) -> dict[int, int]:
    """Sleep until the child `pid` ends or this process is told to end; exit codes (-n for signal n) by pid."""
    codes: dict[int, int] = {}
    while pid not in codes and signal.sigwait({signal.SIGCHLD, *ENDINGS}) is signal.SIGCHLD:
        codes |= reap()
    return codes


def reap() -> dict[int, int]:
    """Exit codes of the children, adopted ones included, that have ended since the last call."""
    codes: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])
    return codes


def end_descendants(grace_s: float, codes: dict[int, int]) -> None:
    """End every process below this one: SIGTERM, `grace_s` seconds, SIGKILL. Adds exit codes to `codes`."""
    this, start = psutil.Process(), time.monotonic()
    for process in this.children(recursive=True):
        _send(process, signal.SIGTERM)
    while True:
        codes |= reap()
        # Asked anew each time: an orphan's children become ours, and the dying may still fork.
        left, waited_s = this.children(recursive=True), time.monotonic() - start
        if not left or waited_s > grace_s + ABANDON_S:
            return
        if waited_s > grace_s:
            for process in left:
                _send(process, signal.SIGKILL)
        time.sleep(0.02)


def write_exit(folder: Path, rank: int, code: int, ended_at: float) -> None:
    """Write a rank's exit code (-n for signal n) and when (s since the epoch) to `folder`/exit-<rank>.json."""
    row = {"rank": rank, "code": code, "time": ended_at}
    (folder / f"exit-{rank}.json").write_text(json.dumps(row) + "\n", encoding="ascii")


def prctl(option: int, value: int) -> None:
    """The system call of that name, for this process. OSError where the kernel refuses."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _before_exec() -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    split = list(arguments).index("--")
    parser = argparse.ArgumentParser(prog="suite.guard", description=__doc__)
    parser.add_argument("--parent", type=int, default=0, help="pid without which the command must not live")
    parser.add_argument("--grace", type=float, default=5.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--exits", default="", help="folder for exit-<rank>.json; the rank is the variable RANK")
    return parser.parse_args(arguments[:split]), list(arguments[split + 1 :])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
