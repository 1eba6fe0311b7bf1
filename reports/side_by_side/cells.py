"""Cells of the tables of layouts: a number as text and as what it is sorted by, the prediction's error beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from reports.comparison import Comparison
from suite.record import Quantity
from suite.units import NOT_KNOWN, percent_text, seconds_text


@dataclass(frozen=True)
class Cell:
    """What a cell says, and the number that it is sorted by; None: by its text."""

    text: str
    key: float | str | None = None


@dataclass(frozen=True)
class SideTable:
    """A table whose first column is the layout's name; of `is_text` headings the cells are words."""

    key: str
    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: tuple[str, ...] = ("layout",)


def known_columns(table: SideTable) -> SideTable:
    """The table without the columns in which nothing is known."""
    kept = [
        place
        for place in range(len(table.headings))
        if any(row[place].text not in ("", NOT_KNOWN) for row in table.rows)
    ]
    rows = tuple(tuple(row[place] for place in kept) for row in table.rows)
    return replace(table, headings=tuple(table.headings[place] for place in kept), rows=rows)


def time_cells(
    measured: float | None, predicted: float | None, error: float | None, is_noisy: bool
) -> tuple[Cell, Cell]:
    """As `pair_cells`, of times, which may be noisy."""
    first, second = pair_cells(predicted, measured, seconds_text)
    noisy = " noisy" if is_noisy else ""
    return Cell(first.text + noisy, first.key), Cell(percent_text(error, 1, signed=True), second.key)


def pair_cells(
    predicted: float | None, measured: float | None, text: Callable[[float | None], str]
) -> tuple[Cell, Cell]:
    """The measured number and the error of the prediction; of what was not measured the prediction, and no error."""
    row = Comparison(Quantity.MEMORY, None, None, None, predicted, measured)
    if measured is None:
        said = NOT_KNOWN if predicted is None else promise(text(predicted))
        return Cell(said, key_of(predicted)), Cell(NOT_KNOWN, "")
    error = error_text(row)
    return Cell(text(measured), measured), Cell(error, "" if row.error is None else abs(row.error))


def promise(text: str) -> str:
    """A number that is predicted and was not measured."""
    return text if text == NOT_KNOWN else f"{text} predicted"


def error_text(row: Comparison) -> str:
    """The signed error, or the word exact."""
    return "exact" if row.is_exact else percent_text(row.error, signed=True)


def key_of(value: float | None) -> float | str:
    """What a number is sorted by; empty where it is not known, which goes last."""
    return "" if value is None else value


def is_there(row: Comparison | None) -> bool:
    """Has either side anything?"""
    return bool(row and (row.predicted or row.measured))


def both(row: Comparison | None, text: Callable[[float | None], str]) -> Cell:
    """'12.1 MiB +0.31 %': measured and the prediction's error; nothing where nothing is."""
    if row is None or not is_there(row):
        return Cell("", 0.0)
    if row.measured is None:
        return Cell(promise(text(row.predicted)), key_of(row.predicted))
    if row.predicted is None:
        return Cell(f"{text(row.measured)} not predicted", row.measured)
    error = f"{text(row.difference)} off" if row.error is None else error_text(row)
    return Cell(f"{text(row.measured)} {error}", row.measured)


def sides(
    predicted: float | None, measured: float | None, text: Callable[[float | None], str], digits: int = 2
) -> tuple[Cell, Cell, Cell]:
    """Predicted, measured, error."""
    row = Comparison(Quantity.MEMORY, None, None, None, predicted, measured)
    error = "exact" if row.is_exact else percent_text(row.error, digits, signed=True)
    last = Cell(error, "" if row.error is None else abs(row.error))
    return Cell(text(predicted), key_of(predicted)), Cell(text(measured), key_of(measured)), last
