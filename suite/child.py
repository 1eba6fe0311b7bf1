"""Asks a module in a process of its own: one JSON request on its standard input, one JSON answer on its output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from suite.environment import ROOT


class ChildError(RuntimeError):
    """The process failed or said nothing in time; one line says how."""


def ask(module: str, request: Any, timeout_s: float, extra: Mapping[str, str] | None = None) -> Any:
    """What `python -m module` answers to the request, in this interpreter's own environment plus `extra` variables.

    It runs under the suite's guard, so that nothing of it outlives this call. Raises ChildError.
    """
    guard = ["-m", "suite.guard", "--parent", str(os.getpid()), "--grace", "1", "--"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        [sys.executable, *guard, sys.executable, "-m", module],
        env={"OMP_WAIT_POLICY": "passive", **os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **(extra or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C at the terminal is ours to hear
    ) as process:
        try:
            out, err = process.communicate(json.dumps(request), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise ChildError(f"no answer within {timeout_s:.0f} s") from None
        finally:
            process.terminate()  # the guard ends all below it; nothing to do where it has ended
    if process.returncode != 0:
        last = (err.strip().splitlines() or ["it printed nothing"])[-1]
        raise ChildError(f"ended with status {process.returncode}: {last}")
    try:
        return json.loads(out)
    except ValueError:
        raise ChildError(f"its answer is no JSON: {out[:60]!r}") from None
