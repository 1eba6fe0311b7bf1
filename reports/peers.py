"""Other tools beside us on the same measured runs: each one's states and peak, with its error. Bytes, fullest rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from reports.compare import CaseComparison
from reports.summary import Errors, RunComparison, errors_of
from suite.peers import PeerAnswer
from suite.record import STATE, Component, Moment
from suite.stats import relative_error
from suite.units import NOT_KNOWN, bytes_text, percent_text

OURS = "shardscope"
#: when every part of the state exists at once
STATE_AT = Moment.AFTER_BACKWARD


@dataclass(frozen=True)
class Cell:
    """What a tool says of a number, and how far it is from the measurement; else why it says nothing."""

    nbytes: float | None
    measured: float | None
    reason: str = ""

    @property
    def error(self) -> float | None:
        """(said - measured) / measured."""
        return relative_error(self.nbytes, self.measured)

    @property
    def text(self) -> str:
        """'28.68 MiB', or 'n/a: states only'."""
        return bytes_text(self.nbytes) if self.nbytes is not None else f"{NOT_KNOWN}: {self.reason or 'not asked'}"

    @property
    def error_text(self) -> str:
        """The signed error; empty where the tool says nothing."""
        return percent_text(self.error, signed=True) if self.nbytes is not None else ""


@dataclass(frozen=True)
class ToolRow:
    """One tool on one case."""

    tool: str
    states: Cell
    peak: Cell
    call: str = ""

    @property
    def is_silent(self) -> bool:
        """Does it say nothing of the case, for one reason?"""
        return self.states.nbytes is None and self.peak.nbytes is None and self.states.reason == self.peak.reason


@dataclass(frozen=True)
class PeerCase:
    """A case with its measured states (parameters, buffers, gradients, optimizer state after the backward pass) and
    peak, and what each tool says of them, ours first."""

    comparison: CaseComparison
    states: float | None
    peak: float | None
    rows: tuple[ToolRow, ...]


@dataclass(frozen=True)
class ToolErrors:
    """A tool over all the cases of which it says something."""

    tool: str
    version: str | None
    states: Errors | None
    peak: Errors | None


def peer_cases(comparison: RunComparison) -> tuple[PeerCase, ...]:
    """Every case of a run that other tools were asked about; empty where none was to be asked."""
    if not comparison.run.peers:
        return ()
    return tuple(_peer_case(case) for case in comparison.cases)


def tool_errors(comparison: RunComparison, cases: Iterable[PeerCase]) -> tuple[ToolErrors, ...]:
    """Each tool's errors over the cases, ours first."""
    found: dict[str, list[ToolRow]] = {}
    for case in cases:
        for row in case.rows:
            found.setdefault(row.tool, []).append(row)
    versions = {answer.peer.value: answer.version for case in comparison.cases for answer in case.result.peers}
    return tuple(
        ToolErrors(
            tool,
            versions.get(tool),
            errors_of([row.states.error for row in rows]),
            errors_of([row.peak.error for row in rows]),
        )
        for tool, rows in found.items()
    )


def _peer_case(case: CaseComparison) -> PeerCase:
    states = _states(case, lambda row: row.measured)
    peak = case.peak.measured.bytes if case.peak.measured else None
    why = case.result.unpredicted or "not estimated yet"
    said = case.peak.predicted.bytes if case.peak.predicted else None
    ours = ToolRow(OURS, Cell(_states(case, lambda row: row.predicted), states, why), Cell(said, peak, why))
    return PeerCase(case, states, peak, (ours, *_theirs(case.result.peers, states, peak)))


def _theirs(answers: Iterable[PeerAnswer], states: float | None, peak: float | None) -> Iterator[ToolRow]:
    for answer in answers:
        yield ToolRow(
            answer.peer.value,
            Cell(answer.states.nbytes, states, answer.states.reason),
            Cell(answer.peak.nbytes, peak, answer.peak.reason),
            answer.call,
        )


def _states(case: CaseComparison, side: Callable[..., float | None]) -> float | None:
    """Bytes of the state on the rank that holds most of it; None where it is not known."""
    sums = []
    for rank in case.ranks:
        parts = [_part(case, component, rank, side) for component in STATE]
        if any(part is not None for part in parts):
            sums.append(sum(part or 0.0 for part in parts))
    return max(sums, default=None)


def _part(case: CaseComparison, component: Component, rank: int, side: Callable[..., float | None]) -> float | None:
    row = case.memory(component, rank, STATE_AT)
    return side(row) if row else None
