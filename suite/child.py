"""Asks a module in a process of its own, in JSON: once and for all, or line by line as long as it lives."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from suite.environment import ROOT

#: seconds that the guard of a process that has died takes at most to end
END_S = 10.0


class ChildError(RuntimeError):
    """The process failed or said nothing in time; one line says how."""


def ask(module: str, request: Any, timeout_s: float, extra: Mapping[str, str] | None = None) -> Any:
    """What `python -m module` answers to the request, in this interpreter's own environment plus `extra` variables.

    It runs under the suite's guard, so that nothing of it outlives this call. Raises ChildError.
    """
    with _started(module, extra, subprocess.PIPE) as process:
        try:
            out, err = process.communicate(json.dumps(request).encode(), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ChildError(f"no answer within {timeout_s:.0f} s") from None
        finally:
            process.terminate()  # the guard ends all below it; nothing to do where it has ended
    if process.returncode != 0:
        raise ChildError(_ending(process.returncode, err))
    return _parsed(out)


@dataclass(frozen=True)
class Child:
    """A process that answers each line of JSON on its standard input with one on its output."""

    process: subprocess.Popen[bytes]
    stderr: IO[bytes]

    def ask(self, request: Any, timeout_s: float) -> Any:
        """Its answer. Raises ChildError; the process is of no more use then."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has died: reading tells
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
        return _parsed(self._line(time.monotonic() + timeout_s, timeout_s))

    def _line(self, deadline: float, timeout_s: float) -> bytes:
        assert self.process.stdout
        pipe, parts = self.process.stdout.fileno(), [b""]
        while not parts[-1].endswith(b"\n"):
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise ChildError(f"no answer within {timeout_s:.0f} s")
            parts.append(os.read(pipe, 1 << 16))
            if not parts[-1]:
                raise ChildError(self._end())
        return b"".join(parts)

    def _end(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        self.stderr.seek(0)
        return _ending(self.process.returncode, self.stderr.read())


@contextmanager
def talking(module: str, extra: Mapping[str, str] | None = None) -> Iterator[Child]:
    """`python -m module` to be asked again and again, as `ask` otherwise; nothing of it outlives the block."""
    with tempfile.TemporaryFile() as stderr, _started(module, extra, stderr) as process:
        try:
            yield Child(process, stderr)
        finally:
            process.terminate()


def _started(module: str, extra: Mapping[str, str] | None, stderr: int | IO[bytes]) -> subprocess.Popen[bytes]:
    guard = ["-m", "suite.guard", "--parent", str(os.getpid()), "--grace", "1", "--"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, *guard, sys.executable, "-m", module],
        env={"OMP_WAIT_POLICY": "passive", **os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **(extra or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        bufsize=0,  # closing a pipe to a process that has died must not find anything left to write
        start_new_session=True,  # a Ctrl-C at the terminal is ours to hear
    )


def _ending(code: int | None, stderr: bytes) -> str:
    last = (stderr.decode(errors="replace").strip().splitlines() or ["it printed nothing"])[-1]
    return f"ended with status {code}: {last}"


def _parsed(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except ValueError:
        raise ChildError(f"its answer is no JSON: {answer[:60].decode(errors='replace')!r}") from None
