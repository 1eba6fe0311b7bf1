"""What the page shows of step times: predicted, measured, their error, and the parts of the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallelism.simulator.plan import Part
from reports.compare import CaseComparison
from reports.palette import PARTS, Colour


@dataclass(frozen=True)
class TimePart:
    """A part of a predicted step."""

    name: str
    colour: Colour
    seconds: float
    share: float


@dataclass(frozen=True)
class TimeRow:
    """A case's step: `length` is the predicted time over the longest of all rows, predicted or measured, and
    `measured_at` the measured one's."""

    case: CaseComparison
    parts: tuple[TimePart, ...]
    length: float
    measured_at: float | None


def time_rows(cases: Sequence[CaseComparison]) -> list[TimeRow]:
    """The cases that have a predicted step time."""
    timed = [case for case in cases if case.speed.predicted_seconds]
    longest = max((value for case in timed for value in _seconds(case)), default=0.0)
    return [_row(case, longest) for case in timed]


def legend_of(rows: Sequence[TimeRow]) -> list[tuple[str, Colour]]:
    """The parts that any row has, in their order."""
    found = {part.name: part.colour for row in rows for part in row.parts}
    order = [_words(part.value) for part in Part]
    return sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))


def _row(case: CaseComparison, longest: float) -> TimeRow:
    predicted = case.speed.predicted
    assert predicted
    total = case.speed.predicted_seconds or 0.0
    parts = tuple(
        TimePart(_words(name), PARTS[part_of(name)], seconds, seconds / total)
        for name, seconds in predicted.parts_seconds.items()
        if seconds
    )
    measured = case.speed.measured_seconds
    return TimeRow(case, parts, total / longest, None if measured is None else measured / longest)


def _seconds(case: CaseComparison) -> list[float]:
    return [value for value in (case.speed.predicted_seconds, case.speed.measured_seconds) if value is not None]


def _words(name: str) -> str:
    return name.replace("_", " ")


def part_of(name: str) -> Part:
    """A part by its name; a record of before there were parts says `exposed_communication`."""
    return Part(name) if name in set(Part) else Part.TENSOR
