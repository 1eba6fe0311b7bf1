"""A history in words: a table of cases on a terminal, and the same as JSON-ready data."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.text import Text

from reports.history.collect import History, Point, Series
from reports.judge import Limits
from reports.regress.text import STYLES, change_text, p_text
from reports.tables import add_column, cell, framed
from reports.text import plain, plural
from suite.units import number_text, percent_text

#: rows of a terminal's table
SHOWN_ROWS = 60
#: points that a small drawing in a line of text has
_SPARKS = 24
#: medians that are apart by less are drawn alike
_FLAT = 1e-3
_BARS = "▁▂▃▄▅▆▇█"
#: a narrower terminal has no room for what changed in a column
WIDE = 132
HEADINGS = ("runs", "first", "last", "over all", "by run", "changes")


def print_histories(histories: tuple[History, ...], limits: Limits, console: Console) -> None:
    """A table for each quantity and machine, a row a case: those that changed first."""
    for history in histories:
        for machine in machines(history):
            rows = changed_first(history, machine)
            _print_table(history, machine, rows[:SHOWN_ROWS], console)
            if len(rows) > SHOWN_ROWS:
                console.print(cell(f"{len(rows) - SHOWN_ROWS} more cases; --json and --page have all of them"))
    for line in definitions(limits):
        console.print(cell(line))


def _print_table(history: History, machine: tuple[str, ...], rows: list[Series], console: Console) -> None:
    """Changes are a column of a wide terminal; on a narrow one they are told below."""
    is_wide = console.width >= WIDE
    table = framed(f"{history.measure.title} over runs, on {machine_text(machine)}")
    add_column(table, "case", right=False)
    for heading in HEADINGS if is_wide else HEADINGS[:-1]:
        add_column(table, heading, right=heading in ("runs", "first", "last", "over all"))
        table.columns[-1].no_wrap = heading != "changes"
    told: list[Text] = []
    for series in rows:
        *cells, changes = series_cells(history, series)
        style = STYLES[series.changes[-1].change.verdict] if series.changes and series.changes[-1].change else ""
        table.add_row(cell(series.label), *map(cell, cells), *([cell(changes, style)] if is_wide else []))
        if series.changes and not is_wide:
            told += [cell(series.label), *(cell(f"  {change_line(point)}", style) for point in series.changes)]
    console.print(table)
    for line in told:
        console.print(line)


def machines(history: History) -> tuple[tuple[str, ...], ...]:
    """The machines that a history's runs were made on."""
    return tuple(dict.fromkeys(series.machine for series in history.series))


def machine_text(machine: tuple[str, ...]) -> str:
    """'architecture x86_64, cores 2, cpu Example'."""
    return plain(", ".join(machine)) or "a machine that is not recorded"


def changed_first(history: History, machine: tuple[str, ...]) -> list[Series]:
    """A machine's cases, those with changes first, else in the order of the runs."""
    rows = [series for series in history.series if series.machine == machine]
    return sorted(rows, key=lambda series: not series.changes)


def series_cells(history: History, series: Series) -> tuple[str, ...]:
    """The cells under HEADINGS."""
    text = history.measure.text
    first, last = series.points[0].summary.median, series.points[-1].summary.median
    overall = "" if history.measure.is_share or not first else percent_text(last / first - 1, signed=True)
    changes = "; ".join(change_line(point) for point in series.changes) or "none found"
    return str(len(series.points)), text(first), text(last), overall, sparks(series), changes


def change_line(point: Point) -> str:
    """'worse at 0256221f041e: +12.30 % (p 0.0079)'."""
    judged = point.change
    assert judged
    p = f" (p {p_text(judged)})" if judged.p is not None else ""
    return plain(f"{judged.verdict.value} at {point.origin.label}: {change_text(judged)}{p}")


def sparks(series: Series) -> str:
    """The medians of the latest runs as bars, from the lowest to the highest of them."""
    values = [point.summary.median for point in series.points[-_SPARKS:]]
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    reach = len(_BARS) - 1
    flat = high - low <= abs(low) * _FLAT
    return "".join(
        " " if not math.isfinite(value) else _BARS[0 if flat else round((value - low) / (high - low) * reach)]
        for value in values
    )


def definitions(limits: Limits) -> list[str]:
    """What the table says."""
    alpha, least = number_text(limits.alpha, 3), percent_text(limits.least)
    return [
        "Medians of each run after warm-up, of the slowest or fullest rank; by run: from the lowest to the highest.",
        f"A change is marked where the commit changes: p < {alpha} (Mann-Whitney; Holm over all cases and commits) and"
        f" at least {least}, as in `compare`. Runs of one clean commit count as launches of the same code.",
    ]


def histories_mapping(root: str, histories: tuple[History, ...], unread: list[str], limits: Limits) -> dict[str, Any]:
    """The histories as `--json` prints them."""
    return {
        "folder": root,
        "unread": unread,
        "alpha": limits.alpha,
        "least": limits.least,
        "adjustment": "holm",
        "quantities": [
            {
                "quantity": history.measure.name,
                "better": history.measure.better.value,
                "series": [_series_mapping(series) for series in history.series],
            }
            for history in histories
        ],
    }


def _series_mapping(series: Series) -> dict[str, Any]:
    return {
        "case_id": series.case_id,
        "case": series.label,
        "machine": list(series.machine),
        "points": [_point_mapping(point) for point in series.points],
    }


def _point_mapping(point: Point) -> dict[str, Any]:
    summary, judged = point.summary, point.change
    return {
        "run": point.origin.run,
        "created": point.origin.created,
        "commit": point.origin.commit,
        "median": summary.median,
        "quartiles": list(point.ends),
        "readings": summary.count,
        "verdict": judged.verdict.value if judged else None,
        "change": judged.change if judged else None,
        "p_adjusted": judged.p if judged else None,
    }


def runs_text(histories: tuple[History, ...]) -> str:
    """'6 runs of 2 commits'."""
    origins = {
        point.origin.run: point.origin for each in histories for series in each.series for point in series.points
    }
    commits = {origin.commit for origin in origins.values() if origin.commit}
    return f"{plural(len(origins), 'run')} of {plural(len(commits), 'commit')}"
