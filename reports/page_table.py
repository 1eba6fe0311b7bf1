"""A table of a page: columns, rows, what sorts and filters them. Plain text only; the templates escape it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from suite.units import NOT_KNOWN


class Kind(StrEnum):
    """How a column's cells are set and compared."""

    TEXT = "text"
    NUMBER = "number"  # to the right, compared by `Cell.value`
    PROSE = "prose"  # sentences: muted, given room
    CODE = "code"  # a command or formula: fixed pitch, given room


class Tone(StrEnum):
    """How a cell or a headline figure is coloured; the same is always said in words or by a sign, too."""

    PLAIN = "plain"
    GOOD = "good"
    BAD = "bad"
    QUIET = "quiet"


@dataclass(frozen=True)
class Column:
    """A column's heading, the unit shown below it (also that of a filter's bare number), and its kind."""

    heading: str
    kind: Kind = Kind.TEXT
    unit: str = ""


@dataclass(frozen=True)
class Cell:
    """What a cell shows. `value` is what a number sorts and filters by, in SI (bytes, seconds, a fraction); a number
    without one is not known and always stands last. `href` leads to an id of the page: '#case-3'."""

    text: str
    value: float | None = None
    tone: Tone = Tone.PLAIN
    href: str = ""
    note: str = ""  # small, after the text

    @property
    def sort(self) -> str:
        """The value as the page's script reads it; empty where it is not known."""
        if self.value is None or math.isnan(self.value):
            return ""
        return repr(float(self.value)) if math.isfinite(self.value) else f"{'-' * (self.value < 0)}Infinity"


def number(
    value: float | None, show: Callable[[float | None], str], tone: Tone = Tone.PLAIN, note: str = "", href: str = ""
) -> Cell:
    """A number's cell, written by one of suite/units.py: `number(row.step_seconds, seconds_text)`. None is 'n/a'."""
    known = value is not None and not math.isnan(value)
    return Cell(show(value) if known else NOT_KNOWN, value if known else None, tone, href, note)


def words(text: object, tone: Tone = Tone.PLAIN, note: str = "", href: str = "") -> Cell:
    """A text's cell; None is 'n/a'."""
    return Cell(NOT_KNOWN if text is None else str(text), None, tone, href, note)


@dataclass(frozen=True)
class Table:
    """A sortable table; the first column names the row. `example` is shown in the filter's empty box.

    ValueError where a row has another number of cells than there are columns.
    """

    key: str  # unique on the page: letters, digits, dashes
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    foot: tuple[Cell, ...] = ()  # a row of totals, which stays at the foot
    example: str = "words to look for"

    def __post_init__(self) -> None:
        for row in (*self.rows, *((self.foot,) if self.foot else ())):
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.key!r}: a row of {len(row)} cells, {len(self.columns)} columns")
