"""The rows a rank writes while it runs, one JSON object a line in rank-<R>.jsonl, and how they are read back.

    {"sample": {...}}  {"heartbeat": "step 3"}  {"environment": {...}}  {"skipped": "reason"}
    {"failure": {"kind": "oom" | "error" | "cache_full", "message": "..."}}  {"done": true}

Both halves of the protocol are here: a worker writes with RankWriter, the launcher reads with read_rank.
A line is flushed at once, so a rank that is killed has lost at most the row it was writing.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

from suite.parse import SpecError, convert, from_mapping, to_mapping
from suite.record import Sample

STDERR_TAIL_LINES = 20
STDERR_TAIL_BYTES = 64 * 1024
TRACEBACK = "Traceback (most recent call last)"


class FailureKind(StrEnum):
    """What a rank says stopped it."""

    OOM = "oom"
    ERROR = "error"
    CACHE_FULL = "cache_full"  # of a served case's cache: the rank itself went on to its end


@dataclass(frozen=True)
class RankFailure:
    """A rank's own account of its failure. `time` is in seconds since the epoch, 0 where it was not said."""

    kind: FailureKind
    message: str
    time: float = 0.0


@dataclass(frozen=True)
class RankExit:
    """How a rank's process ended: its exit code (-n for signal n) and when, in seconds since the epoch."""

    rank: int
    code: int
    time: float


@dataclass(frozen=True)
class RankLog:
    """Everything one rank left behind. A field is None or empty where the rank wrote no such row."""

    rank: int
    samples: tuple[Sample, ...] = ()
    heartbeat: str = ""  # the last one
    environment: dict[str, Any] = field(default_factory=dict)
    failure: RankFailure | None = None  # the first one
    skipped: str | None = None
    done: bool = False
    exit: RankExit | None = None
    stderr_tail: str = ""
    fault: str = ""  # the first row that could not be read
    row_time: float = 0.0  # when the last row was written, in seconds since the epoch; 0 where there is none


class RankWriter:
    """Appends rows for one rank to `folder`/rank-<rank>.jsonl. OSError where the disk refuses."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.rank = rank
        self._file: TextIO = rows_path(folder, rank).open("a", encoding="ascii", buffering=1)

    def sample(self, sample: Sample) -> None:
        """One raw reading."""
        self._write("sample", sample)

    def heartbeat(self, text: str) -> None:
        """A sign of progress, and where the rank is: 'step 3'."""
        self._write("heartbeat", text)

    def environment(self, environment: Mapping[str, Any]) -> None:
        """What the run ran on; one rank says it."""
        self._write("environment", dict(environment))

    def skipped(self, reason: str) -> None:
        """The case cannot run here, for this reason."""
        self._write("skipped", reason)

    def failure(self, kind: FailureKind, message: str) -> None:
        """The case failed on this rank; the message is one line, not a traceback."""
        self._write("failure", RankFailure(kind, message, time.time()))

    def done(self) -> None:
        """The last row: nothing is missing."""
        self._write("done", True)

    def close(self) -> None:
        """Close the file; every row was flushed when it was written."""
        self._file.close()

    def _write(self, key: str, value: Any) -> None:
        self._file.write(json.dumps({key: to_mapping(value)}, allow_nan=False) + "\n")


def rows_path(folder: Path, rank: int) -> Path:
    """Where a rank's rows are."""
    return folder / f"rank-{rank}.jsonl"


def exit_path(folder: Path, rank: int) -> Path:
    """Where a rank's guard writes how the rank ended (suite.guard.write_exit)."""
    return folder / f"exit-{rank}.json"


def logs_path(folder: Path) -> Path:
    """Where torchrun puts what the ranks print."""
    return folder / "logs"


def read_rank(folder: Path, rank: int, home: Path | None = None) -> RankLog:
    """What a rank has left so far: its rows in `folder`, how it ended and what it printed in the launch's `home`, which
    is the same folder unless said. A torn last line is passed over; any other bad row is kept as the `fault`."""
    log = RankLog(
        rank=rank,
        exit=_read_exit(exit_path(home or folder, rank)),
        stderr_tail=stderr_tail(home or folder, rank),
        row_time=_written_at(rows_path(folder, rank)),
    )
    rows: dict[str, Any] = {}
    samples: list[Sample] = []
    path = rows_path(folder, rank)
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines[:-1], start=1):
        try:
            key, value = _read_row(line, f"{path.name}: line {number}")
        except SpecError as error:
            rows.setdefault("fault", str(error))
            continue
        if key == "sample":
            samples.append(value)
        elif key in ("failure", "skipped"):
            rows.setdefault(key, value)  # the first tells the cause
        else:
            rows[key] = value
    return replace(log, samples=tuple(samples), **rows)


def stderr_tail(folder: Path, rank: int) -> str:
    """The last STDERR_TAIL_LINES lines a rank wrote to standard error; empty where it wrote none."""
    for path in logs_path(folder).glob(f"*/attempt_0/{rank}/stderr.log"):
        return tail_text(path)
    return ""


def tail_text(path: Path) -> str:
    """The last STDERR_TAIL_LINES lines of a text file, which may be large; bytes that are no text are replaced."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - STDERR_TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    return "\n".join(text.splitlines()[-STDERR_TAIL_LINES:])


def last_line(text: str) -> str:
    """The line of a standard error that says what went wrong: what was raised at the end of the last traceback,
    else the last line with words in it, torch's own log lines aside."""
    lines = [re.sub(r"^\[rank\d+\]:\s?", "", line).rstrip() for line in text.splitlines()]
    raised = _raised_line(lines)
    if raised:
        return raised
    spoken = [line.strip() for line in lines if any(character.isalnum() for character in line)]
    said = [line for line in spoken if not re.match(r"\[?[IWE]\d{4} ", line)]
    return (said or spoken or [""])[-1]


def _raised_line(lines: Sequence[str]) -> str:
    """The first line after the last traceback's frames, which are indented; empty where there is no traceback."""
    starts = [number for number, line in enumerate(lines) if line.startswith(TRACEBACK)]
    after = lines[starts[-1] + 1 :] if starts else []
    return next((line for line in after if line and not line[0].isspace()), "")


#: row key -> the type of its value
_KINDS: dict[str, Any] = {
    "sample": Sample,
    "heartbeat": str,
    "environment": dict[str, Any],
    "failure": RankFailure,
    "skipped": str,
    "done": bool,
}


def _read_row(line: bytes, where: str) -> tuple[str, Any]:
    """One row as its key and typed value; SpecError says what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError:
        raise SpecError(f"{where}: not a row: {line[:60]!r}") from None
    if not isinstance(row, dict) or len(row) != 1 or not row.keys() <= _KINDS.keys():
        raise SpecError(f"{where}: expected one of {', '.join(_KINDS)}, got {line[:60]!r}")
    [(key, value)] = row.items()
    return key, convert(value, _KINDS[key], f"{where}: {key}")


def _written_at(path: Path) -> float:
    """When a file was last written to; 0 where it does not exist or is empty."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0.0
    return status.st_mtime if status.st_size else 0.0


def _read_exit(path: Path) -> RankExit | None:
    try:
        return from_mapping(RankExit, json.loads(path.read_bytes()), path.name)
    except (FileNotFoundError, ValueError):  # not ended yet, or its guard was killed while it wrote
        return None
