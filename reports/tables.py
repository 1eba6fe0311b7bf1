"""The terminal's tables, rendered by rich to a Console that the caller gives. Numbers become text in suite.units.

Every cell is a `Text`, never markup: a model called "[red]" is printed as it is spelled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reports.compare import CaseComparison, Comparison
from reports.factors import factor_rows
from reports.ranking_text import ranking_table
from reports.run_ranking import run_ranking
from reports.serving_tables import TextTable, serving_tables
from reports.summary import ERROR_BAND, OPENED, Errors, RunComparison
from reports.text import plain, plain_lines
from reports.wording import instant_bytes, instant_text, moments_text, sentences
from suite.record import MemoryEstimate, Moment
from suite.units import NOT_KNOWN, bytes_text, count_text, number_text, percent_text, seconds_text

#: Columns from which the table of cases shows everything it knows.
WIDE = 132
_ALARM, _QUIET = "bold red", "dim"


@dataclass(frozen=True)
class _Column:
    """A column of the table of cases: its heading, its cell, and the narrowest console it is shown on."""

    heading: str
    cell: Callable[[CaseComparison], Text]
    from_width: int = 0
    justify_right: bool = True


def print_run(comparison: RunComparison, console: Console) -> None:
    """The table of cases, what they send, the reasons of those that did not end well, and the summary."""
    if any(case.serving for case in comparison.cases):
        for shown in serving_tables(comparison):
            console.print(text_table(shown))
    elif len(comparison.cases) <= OPENED:
        console.print(case_table(comparison, console.width))
    else:
        console.print(factor_table(comparison))
    if comparison.senders:
        console.print(traffic_table(comparison))
    if ranking := run_ranking(comparison):
        console.print(text_table(ranking_table(ranking)))
    for case in comparison.unfinished:
        console.print(cell(f"{case.status}: {case.case.label}: {case.reason or 'no measurement'}", "yellow"))
    for sentence in sentences(comparison):
        console.print(cell(sentence))


def text_table(shown: TextTable) -> Table:
    """A table that is text already, a row a case."""
    table = framed(shown.title)
    for heading in shown.headings:
        add_column(table, heading, right=heading not in shown.words)
    for row in shown.rows:
        table.add_row(*map(cell, row))
    return table


def case_table(comparison: RunComparison, width: int) -> Table:
    """One row a case, with the columns that fit a console of `width` characters."""
    table = framed(f"{comparison.run.suite}: predicted beside measured, fullest rank")
    columns = [column for column in _COLUMNS if width >= column.from_width]
    for column in columns:
        add_column(table, column.heading, column.justify_right)
    for case in comparison.cases:
        table.add_row(*(column.cell(case) for column in columns))
    return table


def traffic_table(comparison: RunComparison) -> Table:
    """Bytes sent in a step by the rank that sends most: predicted, measured, error; a row a case that sends."""
    table = framed("bytes sent in a step, rank that sends most")
    add_column(table, "case", right=False)
    for heading in ("predicted", "measured", "error"):
        add_column(table, heading)
    for case in comparison.senders:
        row = case.sent
        if row:
            cells = (cell(bytes_text(row.predicted)), cell(bytes_text(row.measured)), _row_error(row))
            table.add_row(cell(case.case.label), *cells)
    return table


def factor_table(comparison: RunComparison) -> Table:
    """Errors of the peak by each setting in which the cases differ: a row a value."""
    table = framed("error of the peak by setting")
    for heading, right in (("setting", False), ("value", False), ("cases", True), ("mean absolute", True)):
        add_column(table, heading, right)
    for heading in ("worst", "bias", "too high", "too low", "state exact"):
        add_column(table, heading)
    if comparison.traced:
        add_column(table, "trace mean absolute")
        add_column(table, "trace worst")
    shown = ""
    for row in factor_rows(comparison.cases):
        errors = row.errors
        table.add_row(
            cell("" if row.factor == shown else row.factor),
            cell(row.value),
            cell(count_text(errors.count)),
            cell(percent_text(errors.mean_absolute, 4)),
            cell(percent_text(errors.worst, 4, signed=True), "" if errors.is_within_band else _ALARM),
            cell(percent_text(errors.bias, 4, signed=True)),
            cell(count_text(row.over)),
            cell(count_text(row.under)),
            cell(f"{count_text(row.state_exact)}/{count_text(row.state_rows)}"),
            *(_trace_cells(row.trace) if comparison.traced else ()),
        )
        shown = row.factor
    return table


def _trace_cells(errors: Errors | None) -> tuple[Text, Text]:
    """Mean absolute and worst of the formulas against the traces."""
    if errors is None:
        return cell(NOT_KNOWN), cell(NOT_KNOWN)
    style = "" if errors.is_within_band else _ALARM
    return cell(percent_text(errors.mean_absolute, 4)), cell(percent_text(errors.worst, 4, signed=True), style)


def moment_table(case: CaseComparison, rank: int) -> Table:
    """Totals of a rank at each moment of the step: predicted, measured, difference."""
    table = framed(f"{case.case.label}: rank {rank} over a step")
    add_column(table, "moment", right=False)
    for heading in ("predicted", "measured", "error"):
        add_column(table, heading)
    for moment in Moment:
        row = case.memory(None, rank, moment)
        if row:
            cells = (cell(bytes_text(row.predicted)), cell(bytes_text(row.measured)), _row_error(row))
            table.add_row(cell(moment.value), *cells)
    return table


def component_table(case: CaseComparison) -> Table:
    """Predicted beside measured by component, at the measured peak (the predicted one where nothing was measured)."""
    instant = case.peak.measured or case.peak.predicted
    table = framed(f"{case.case.label}: {instant_text(instant)}")
    add_column(table, "component", right=False)
    for heading in ("predicted", "measured", "error"):
        add_column(table, heading)
    if instant is None:
        return table
    for row in case.components_at(instant):
        if (row.predicted or row.measured) and row.component:
            cells = (cell(bytes_text(row.predicted)), cell(bytes_text(row.measured)), _row_error(row))
            table.add_row(cell(row.component.value), *cells)
    return table


def term_table(estimate: MemoryEstimate, moment: Moment | None = None) -> Table:
    """The lines of an estimate at a moment (its peak, where none is given), the largest first."""
    at = moment or estimate.peak_moment
    total = estimate.total_bytes(at) if at in estimate.by_moment else 0
    table = framed(f"rank {estimate.rank} at {at.value}: {bytes_text(total)} = {count_text(total)} bytes")
    add_column(table, "component", right=False)
    add_column(table, "bytes")
    add_column(table, "formula", right=False)
    add_column(table, "source", right=False)
    for term in sorted((term for term in estimate.terms if term.moment is at), key=lambda term: -term.value):
        cells = (cell(term.component.value), cell(bytes_text(term.value)))
        table.add_row(*cells, cell(term.formula), cell(term.source, _QUIET))
    return table


def stderr_text(case: CaseComparison) -> Text:
    """The last lines that each rank of a failed case wrote, control characters shown as U+FFFD."""
    tails = case.result.measurement.stderr_tails if case.result.measurement else {}
    return Text("\n".join(f"rank {rank}:\n{plain_lines(tail)}" for rank, tail in sorted(tails.items())))


def framed(title: str) -> Table:
    """An empty table under a title."""
    return Table(title=cell(title, "bold"), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)


def add_column(table: Table, heading: str, right: bool = True) -> None:
    """One more column; what does not fit is folded, never cut."""
    table.add_column(cell(heading), justify="right" if right else "left", overflow="fold")


def cell(text: str, style: str = "") -> Text:
    """A cell's text, never markup."""
    return Text(plain(text), style=style)


def _error(error: float | None) -> Text:
    """A signed error; red where it leaves the promised band."""
    style = _ALARM if error is not None and abs(error) > ERROR_BAND else ""
    return cell(percent_text(error, signed=True), style)


def _row_error(row: Comparison) -> Text:
    """A row's signed error, or 'exact' where both sides are equal to the byte."""
    return cell("exact") if row.is_exact else _error(row.error)


def _status(case: CaseComparison) -> Text:
    return cell(case.status, "" if case.is_ok else "yellow")


def _step(case: CaseComparison) -> Text:
    return cell(seconds_text(case.speed.measured_seconds) + (" noisy" if case.speed.is_noisy else ""))


def _spread(case: CaseComparison) -> Text:
    return cell(seconds_text(case.speed.step.iqr if case.speed.step else None), _QUIET)


_COLUMNS = (
    _Column("case", lambda case: cell(case.case.label), justify_right=False),
    _Column("peak predicted", lambda case: cell(instant_bytes(case.peak.predicted))),
    _Column("measured", lambda case: cell(instant_bytes(case.peak.measured))),
    _Column("error", lambda case: _error(case.peak.error)),
    _Column("at moment", lambda case: cell(moments_text(case)), 110, justify_right=False),
    _Column("step predicted", lambda case: cell(seconds_text(case.speed.predicted_seconds)), WIDE),
    _Column("step", _step),
    _Column("IQR", _spread, WIDE),
    _Column("tokens/s", lambda case: cell(count_text(case.speed.tokens_per_second)), 96),
    _Column("MFU", lambda case: cell(percent_text(case.speed.mfu, 1)), WIDE + 12),
    _Column("loss", lambda case: cell(number_text(case.curve.final)), 96),
    _Column("outcome", _status, justify_right=False),
)
