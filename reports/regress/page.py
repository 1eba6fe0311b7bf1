"""One self-contained page for two runs: verdicts, what differed around them, every row, the changes drawn."""

from __future__ import annotations

import math

from reports.page import render
from reports.regress import text
from reports.regress.figure import change_charts
from reports.regress.pair import PairComparison, Row


def render_pair(found: PairComparison) -> str:
    """The page as HTML."""
    return render("pair.html.j2", found=found, text=text, figures=change_charts(found), sort_keys=sort_keys)


def sort_keys(row: Row) -> tuple[float | str | None, ...]:
    """What the cells under HEADINGS are sorted by: a number, empty where there is none, None for the text itself."""
    found = row.judgement
    change = found.change if math.isfinite(found.change) else ""
    delta = found.test.delta if found.test else ""
    low = found.interval.low if found.interval else ""
    p = "" if found.p is None else found.p
    return (None, None, found.before, found.after, change, low, p, delta, sum(found.readings), None)
