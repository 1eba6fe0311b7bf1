"""Published rows: tables of figures that others measured or computed, read strictly and told apart by their columns."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from suite.parse import SpecError, require, shown

#: what a number may look like in a cell; anything else in a numeric column is text, and says so when it is asked for
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", flags=re.ASCII)
_WHOLE = re.compile(r"\d{1,15}(\.0+)?", flags=re.ASCII)
#: a count in groups of three digits
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?![\d,])", flags=re.ASCII)
_UNITS = {"gib": 2.0**30, "mib": 2.0**20, "kib": 2.0**10, "gb": 1e9, "mb": 1e6}


class TableKind(StrEnum):
    """What a row of a table is about."""

    SERVING = "serving"  # a measured time or rate of a model that answers: serving.csv
    RUNS = "runs"  # a measured figure of a training or inference run: memory.csv, throughput.csv
    PARAMETERS = "parameters"  # a model's parameter count: params.csv
    KV_CACHE = "kv_cache"  # bytes of a key-value cache, or how much of it an engine had room for
    HARDWARE = "hardware"  # what a device or a link achieves: hw_micro.csv, calibration material
    ANALYTIC = "analytic"  # a figure that its authors computed: a test of a formula, never a measurement


#: columns that tell a table's kind; the first kind whose columns are all there is the table's
COLUMNS: dict[TableKind, tuple[str, ...]] = {
    TableKind.SERVING: ("row_id", "family", "quantity", "value_si", "prompt_tokens", "new_tokens"),
    TableKind.RUNS: ("row_id", "family", "quantity", "value_si"),
    TableKind.PARAMETERS: ("row_id", "model", "params", "arch"),
    TableKind.KV_CACHE: ("row_id", "attn", "kv_heads", "metric", "value"),
    TableKind.HARDWARE: ("row_id", "op", "metric", "value", "theory"),
    TableKind.ANALYTIC: ("row_id", "family", "kind", "metric", "value", "unit"),
}


class Figure(StrEnum):
    """Which figure of a row of parameters is meant: the column that it stands in."""

    TOTAL = "params"
    ACTIVE = "active_params"  # those that one token uses


class UnreadableCell(ValueError):
    """A cell that was asked for as a number and is none, or is empty: one line that names it."""


@dataclass(frozen=True)
class PublishedRow:
    """One published figure with its configuration as text. An empty cell was not stated; a column that is not there
    is the same as an empty one."""

    kind: TableKind
    row_id: str
    cells: Mapping[str, str]
    figure: Figure = Figure.TOTAL

    @property
    def figures(self) -> tuple[PublishedRow, ...]:
        """The row once for each figure that stands in it: one of parameters may say how many a token uses."""
        if self.kind is TableKind.PARAMETERS and self.text(Figure.ACTIVE):
            return self, replace(self, figure=Figure.ACTIVE)
        return (self,)

    def text(self, name: str) -> str:
        """A cell as it is written; empty where nothing was stated."""
        return self.cells.get(name, "")

    def says(self, name: str, *words: str) -> bool:
        """Does the cell hold one of the words, whatever their case?"""
        return any(word.lower() in self.text(name).lower() for word in words)

    def number(self, name: str) -> float | None:
        """A cell as a number; None where it is empty. UnreadableCell for other text."""
        text = self.text(name)
        if not text:
            return None
        if not _NUMBER.fullmatch(text):
            raise UnreadableCell(f"{name} {shown(text)} is not a number")
        return float(text)

    def count(self, name: str) -> int | None:
        """A cell as a whole number; None where it is empty. UnreadableCell for other text."""
        text = self.text(name)
        if not text:
            return None
        if not _WHOLE.fullmatch(text):
            raise UnreadableCell(f"{name} {shown(text)} is not a whole number")
        return int(float(text))

    def need(self, name: str) -> int:
        """A whole number that cannot be done without. UnreadableCell where it was not stated."""
        found = self.count(name)
        if found is None:
            raise UnreadableCell(f"{name} is not stated")
        return found

    def flag(self, name: str) -> bool | None:
        """A cell of 1 or 0; None where it is empty."""
        found = self.count(name)
        return None if found is None else found != 0

    @property
    def quantity(self) -> str:
        """What the figure is a figure of."""
        if self.kind is TableKind.PARAMETERS:
            return {Figure.TOTAL: "parameters", Figure.ACTIVE: "active_parameters"}[self.figure]
        return self.text("quantity") or self.text("metric")

    @property
    def family(self) -> str:
        """Rows of one source: they were measured one way."""
        if self.kind is TableKind.PARAMETERS:
            return self.text("arch")
        return self.text("family") or self.text("kind")

    @property
    def published(self) -> float | None:
        """The figure in bytes, seconds, tokens or as a plain number; None where none was printed (an OOM)."""
        if self.is_oom:
            return None
        if self.kind is TableKind.PARAMETERS:
            return float(self._parameters) if _NUMBER.fullmatch(self._parameters) else None
        if self.kind in (TableKind.RUNS, TableKind.SERVING):
            return self.number("value_si")
        value = self.number("value")
        return None if value is None else value * self.unit

    @property
    def _parameters(self) -> str:
        """The count as digits, without the commas and the words that may stand beside it."""
        text = self.text(self.figure)
        grouped = _GROUPED.match(text)
        return grouped[0].replace(",", "") if grouped else text

    @property
    def is_oom(self) -> bool:
        """Did the run end without memory? Such a row has no figure, and says that one is too large."""
        return "oom" in (self.text("value").lower(), self.text("value_si").lower())

    @property
    def unit(self) -> float:
        """Bytes (or whatever the figure counts) in one of what the table prints. A printed GB of a cache's table is
        2^30 bytes, as its notes say; elsewhere GB is 10^9 unless GiB stands beside it."""
        if self.kind is TableKind.PARAMETERS:
            return 1.0
        words = re.findall(r"[a-z]+", self.text("unit").lower())
        if "bytes" in words[:1] or not words:
            return 1.0
        found = [word for word in words if word in _UNITS]
        binary = next((word for word in found if word.endswith("ib")), "")
        if self.kind is TableKind.KV_CACHE and found[:1] == ["gb"]:
            binary = "gib"
        return _UNITS[binary or found[0]] if found else 1.0

    def prints_as(self, value: float) -> bool:
        """Would this value be printed with the digits that were published: rounded, or the rest cut off, as some do? A
        count of parameters is printed whole."""
        text = self._parameters if self.kind is TableKind.PARAMETERS else self.text("value")
        published = self.published
        if published is None or not _NUMBER.fullmatch(text):
            return False
        digits = text.lower().partition("e")[0].partition(".")[2]
        last = 10.0 ** -len(digits)
        above = (value - published) / self.unit
        if self.kind is TableKind.PARAMETERS:
            return above == 0
        return abs(above) <= 0.5 * last + 1e-9 or 0 <= above < last


@dataclass(frozen=True)
class PublishedTable:
    """A file of published rows."""

    name: str
    kind: TableKind
    rows: tuple[PublishedRow, ...]


def read_table(path: str) -> PublishedTable:
    """The rows of a CSV file. SpecError, in one line, for a file that cannot be read, has columns of no known table,
    has ragged rows or a row without an id, names a row twice, or prints a figure that is neither a number nor OOM."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except UnicodeDecodeError as error:
        raise SpecError(f"validate: {shown(path)} is not UTF-8 text (byte {error.start}); give a CSV file") from None
    except csv.Error as error:
        raise SpecError(f"validate: {shown(path)} is not CSV ({error})") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"validate: {shown(path)} cannot be read ({reason}); give a CSV file") from None
    lines = [line for line in lines if line]
    require(bool(lines), f"validate: {shown(path)} is empty; expected a header line and rows")
    header, name = [cell.strip() for cell in lines[0]], Path(path).name
    kind = _kind(header, path)
    rows = tuple(_row(kind, header, line, f"validate: {shown(path)}: row {at}") for at, line in enumerate(lines[1:], 1))
    seen: set[str] = set()
    for row in rows:
        require(row.row_id not in seen, f"validate: {shown(path)}: row_id {shown(row.row_id)} stands there twice")
        seen.add(row.row_id)
    return PublishedTable(name, kind, rows)


def _kind(header: list[str], path: str) -> TableKind:
    twice = sorted({column for column in header if header.count(column) > 1})
    require(not twice, f"validate: {shown(path)}: column {shown(twice[0]) if twice else ''} stands there twice")
    for kind, columns in COLUMNS.items():
        if set(columns) <= set(header):
            return kind
    known = "; ".join(f"{kind}: {', '.join(columns)}" for kind, columns in COLUMNS.items())
    raise SpecError(f"validate: {shown(path)}: no table that is known has these columns; needed for {known}")


def _row(kind: TableKind, header: list[str], line: list[str], where: str) -> PublishedRow:
    require(len(line) == len(header), f"{where}: {len(line)} cells under {len(header)} columns")
    cells = {column: cell.strip() for column, cell in zip(header, line, strict=True)}
    row = PublishedRow(kind, cells["row_id"], MappingProxyType(cells))
    require(bool(row.row_id), f"{where}: row_id is empty; name the row")
    value = {TableKind.PARAMETERS: "params", TableKind.RUNS: "value_si"}.get(kind, "value")
    require(
        bool(_NUMBER.fullmatch(row.text(value))) or row.is_oom,
        f"{where} ({shown(row.row_id)}): {value} {shown(row.text(value))} is not a number; expected one, or OOM",
    )
    return row
