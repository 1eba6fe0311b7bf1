"""runs/<stamp>/records.jsonl: rows that are appended, synced to the disk, and never lost or rewritten.

A row is one line of JSON: {"schema": 1, "kind": "run" | "estimate" | "measurement" | "peers" | "trace", ...}. A writer
that is killed leaves at most a torn last line, which readers pass over and the next writer clears. Nothing is pickled.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from suite.case import Case, case_from
from suite.collectives import TrafficEstimate
from suite.parse import SpecError, from_mapping, require, to_mapping
from suite.passes import ON_RANKS, Pass
from suite.peers import Peer, PeerAnswer
from suite.received import RoutedAs
from suite.record import SCHEMA_VERSION, Measurement, MemoryEstimate, Sample, ServingEstimate, TimeEstimate
from suite.timeline import Timeline

RECORDS = "records.jsonl"
#: what every line starts with, so that even a torn first line is known as ours
LINE_START = b'{"schema": '


@dataclass(frozen=True)
class RunRow:
    """What was asked for: the first row of a store. Dictionaries hold JSON's types only, cases their mappings."""

    created: str  # ISO 8601, with the zone
    suite: str
    cases: tuple[dict[str, Any], ...]
    command: tuple[str, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    peers: tuple[Peer, ...] = ()  # the other tools that are asked about every case
    passes: tuple[Pass, ...] = ON_RANKS
    launches: int = 1  # how often each case is launched


@dataclass(frozen=True)
class EstimateRow:
    """What the formulas say of a case, written before it runs; again where the run records its routing. A case run
    twice has two: the later counts."""

    case_id: str
    case: dict[str, Any]
    memory: tuple[MemoryEstimate, ...] = ()  # one a rank
    time: TimeEstimate | None = None
    reason: str = ""  # why there is no estimate, where there is none
    traffic: tuple[TrafficEstimate, ...] = ()  # one a rank
    timelines: tuple[Timeline, ...] = ()  # one a rank
    serving: ServingEstimate | None = None  # of a served case
    routing: RoutedAs = RoutedAs.ASSUMED


@dataclass(frozen=True)
class MeasurementRow:
    """What a case gave when it ran, however it ended. A case launched several times has several: the last counts."""

    case: dict[str, Any]
    measurement: Measurement


@dataclass(frozen=True)
class PeersRow:
    """What other tools say of a case. A case asked about twice has two: the later counts."""

    case_id: str
    case: dict[str, Any]
    answers: tuple[PeerAnswer, ...]


@dataclass(frozen=True)
class TraceRow:
    """What a case's ranks hold on fake tensors (memory/trace.py). A case traced twice has two: the later counts."""

    case_id: str
    case: dict[str, Any]
    samples: tuple[Sample, ...] = ()
    """MEMORY, of the ranks that were traced"""
    reason: str = ""
    """why there are none, where there are none"""


CaseRow = EstimateRow | MeasurementRow | PeersRow | TraceRow
Row = RunRow | CaseRow
R = TypeVar("R", RunRow, EstimateRow, MeasurementRow, PeersRow, TraceRow)

KINDS: dict[str, type[RunRow] | type[EstimateRow] | type[MeasurementRow] | type[PeersRow] | type[TraceRow]] = {
    "run": RunRow,
    "estimate": EstimateRow,
    "measurement": MeasurementRow,
    "peers": PeersRow,
    "trace": TraceRow,
}


@dataclass(frozen=True)
class RunStore:
    """One run's folder. It keeps nothing in memory: two objects, or two processes, see the same rows."""

    folder: Path

    @classmethod
    def create(cls, root: Path, now: datetime | None = None) -> RunStore:
        """A new, empty run under `root`, named by the time in UTC; a second one in the same second gets '-2'."""
        stamp = (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y%m%d-%H%M%S")
        root.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = root / (stamp if number == 1 else f"{stamp}-{number}")
            try:
                folder.mkdir()
                break
            except FileExistsError:
                number += 1
        store = cls(folder)
        store.path.touch()
        _sync_folder(folder)
        _sync_folder(root)
        return store

    @classmethod
    def open(cls, path: Path) -> RunStore:
        """An existing run, by its folder or its records file. SpecError where there is none or it is not ours."""
        folder = path.parent if path.name == RECORDS else path
        store = cls(folder)
        require(store.path.is_file(), f"{path}: no run is recorded there; expected a folder with {RECORDS}")
        store.read()
        return store

    @property
    def path(self) -> Path:
        """The records file."""
        return self.folder / RECORDS

    def case_folder(self, case_id: str) -> Path:
        """Where a case's ranks write while it runs."""
        return self.folder / "cases" / case_id

    def append(self, row: Row) -> None:
        """Write one row and have it on the disk. OSError where the disk refuses; SpecError for a store not ours."""
        line = encode(row)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # released when closed
            _mend_tail(descriptor, self.path)
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> tuple[Row, ...]:
        """All rows in the order they were written; a torn last line is passed over. SpecError for anything else."""
        *lines, tail = self.path.read_bytes().split(b"\n")
        if _is_row(tail):
            lines.append(tail)
        elif not lines:
            _require_torn(tail, self.path)
        return tuple(decode(line, self.path, number) for number, line in enumerate(lines, start=1))

    def rows(self, kind: type[R]) -> tuple[R, ...]:
        """The rows of one kind, in order."""
        return tuple(row for row in self.read() if isinstance(row, kind))

    def case_of(self, row: CaseRow) -> Case:
        """The row's case; SpecError names the file where it cannot be built any more."""
        try:
            return case_from(row.case)
        except SpecError as error:
            raise SpecError(f"{self.path}: {error}") from None


def encode(row: Row) -> bytes:
    """A row as its line."""
    kind = next(name for name, known in KINDS.items() if isinstance(row, known))
    text = json.dumps({"schema": SCHEMA_VERSION, "kind": kind, **to_mapping(row)}, allow_nan=False)
    return text.encode("ascii") + b"\n"


def decode(line: bytes, path: Path, number: int) -> Row:
    """A line as its row. SpecError names the file, the line, what was met and what is understood."""
    where = f"{path}: line {number}"
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or "schema" not in data:
        what = "is not one of Shardscope's records" if number == 1 else "is damaged"
        raise SpecError(f"{where} {what}: {line[:60]!r}")
    schema, kind = data.pop("schema"), data.pop("kind", None)
    if schema != SCHEMA_VERSION:
        raise SpecError(f"{where}: schema {schema!r}; this version understands schema {SCHEMA_VERSION}")
    if kind not in KINDS:
        raise SpecError(f"{where}: kind {kind!r} is not known; known: {', '.join(KINDS)}")
    return from_mapping(KINDS[kind], data, f"{where}: {kind}")  # type: ignore[return-value]


def _mend_tail(descriptor: int, path: Path) -> None:
    """Make the file end in a whole line: finish a row that lacks only its end, cut off a torn one."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    content = path.read_bytes()
    tail = content.rpartition(b"\n")[2]
    if _is_row(tail):
        os.write(descriptor, b"\n")
        return
    if tail == content:
        _require_torn(tail, path)
    os.ftruncate(descriptor, size - len(tail))


def _is_row(tail: bytes) -> bool:
    """Is a last line without its end a whole object nevertheless?"""
    try:
        return tail.startswith(LINE_START) and isinstance(json.loads(tail), dict)
    except (ValueError, RecursionError):
        return False


def _require_torn(tail: bytes, path: Path) -> None:
    """A file that is one unfinished line must be the start of a row of ours."""
    is_ours = tail.startswith(LINE_START) or LINE_START.startswith(tail)
    require(is_ours, f"{path}: line 1 is not one of Shardscope's records: {tail[:60]!r}")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
