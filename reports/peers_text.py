"""The table of other tools beside us, for a terminal, a pull request and a program."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from reports.peers import PeerCase, ToolErrors, ToolRow, peer_cases, tool_errors
from reports.summary import Errors, RunComparison
from reports.tables import add_column, cell, framed
from suite.units import bytes_text, percent_text

HEADINGS = ("states", "error", "peak", "error")
NOTE = (
    "States: parameters, gradients and optimizer state after the backward pass; peak: all of it, at the fullest moment."
    " Each on the fullest rank. Every number of a tool comes from running it."
)


def print_peers(comparison: RunComparison, console: Console) -> None:
    """Every case with what was measured and what each tool says, then each tool over all of them."""
    cases = peer_cases(comparison)
    if cases:
        console.print(_case_table(cases))
        console.print(_error_table(tool_errors(comparison, cases)))
        console.print(cell(NOTE))


def peers_mapping(comparison: RunComparison) -> dict[str, Any] | None:
    """The same as JSON-ready data; None where no tool was asked."""
    cases = peer_cases(comparison)
    if not cases:
        return None
    return {
        "tools": [
            {"tool": row.tool, "version": row.version, "states": _stats(row.states), "peak": _stats(row.peak)}
            for row in tool_errors(comparison, cases)
        ],
        "cases": [
            {
                "case_id": case.comparison.case.case_id,
                "case": case.comparison.case.label,
                "states_bytes": case.states,
                "peak_bytes": case.peak,
                "tools": [_row_mapping(row) for row in case.rows],
            }
            for case in cases
        ],
    }


def peers_rows(comparison: RunComparison) -> list[tuple[str, ...]]:
    """Cells of a plain table: case, tool, states, error, peak, error. The measured row of a case comes first."""
    rows: list[tuple[str, ...]] = []
    for case in peer_cases(comparison):
        rows.append((case.comparison.case.label, "measured", bytes_text(case.states), "", bytes_text(case.peak), ""))
        rows += [("", row.tool, *_cells(row)) for row in case.rows]
    return rows


def _cells(row: ToolRow) -> tuple[str, str, str, str]:
    if row.is_silent:
        return row.states.text, "", "", ""
    return row.states.text, row.states.error_text, row.peak.text, row.peak.error_text


def _case_table(cases: tuple[PeerCase, ...]) -> Table:
    table = framed("other tools on the same measured runs, fullest rank")
    for name in ("tool", "states", "error", "peak", "error"):
        add_column(table, name, right=name == "error")
    for case in cases:
        table.add_row(cell(case.comparison.case.label, "bold"))
        table.add_row(cell("measured"), cell(bytes_text(case.states)), "", cell(bytes_text(case.peak)))
        for row in case.rows:
            table.add_row(cell(row.tool), *(cell(text) for text in _cells(row)))
    return table


def _error_table(rows: tuple[ToolErrors, ...]) -> Table:
    table = framed("each tool's error over the cases of which it says something")
    add_column(table, "tool", right=False)
    add_column(table, "version", right=False)
    for name in ("states", "mean", "worst", "peaks", "mean", "worst"):
        add_column(table, name)
    for row in rows:
        table.add_row(cell(row.tool), cell(row.version or ""), *map(cell, (*_errors(row.states), *_errors(row.peak))))
    return table


def _errors(errors: Errors | None) -> tuple[str, str, str]:
    if errors is None:
        return "0", "n/a", "n/a"
    return str(errors.count), percent_text(errors.mean_absolute), percent_text(errors.worst, signed=True)


def _stats(errors: Errors | None) -> dict[str, Any] | None:
    if errors is None:
        return None
    return {"rows": errors.count, "mean_absolute": errors.mean_absolute, "worst": errors.worst, "bias": errors.bias}


def _row_mapping(row: ToolRow) -> dict[str, Any]:
    parts = {
        name: {"bytes": part.nbytes, "error": part.error, "reason": part.reason if part.nbytes is None else ""}
        for name, part in (("states", row.states), ("peak", row.peak))
    }
    return {"tool": row.tool, **parts, "call": row.call}
