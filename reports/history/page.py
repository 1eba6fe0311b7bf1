"""One self-contained page for a folder of runs: each case drawn over commits, and every point in a table."""

from __future__ import annotations

from pathlib import Path

from reports.history import text
from reports.history.collect import History
from reports.history.figure import history_charts
from reports.judge import Limits
from reports.page import render
from reports.regress.text import change_text


def render_history(root: Path, histories: tuple[History, ...], unread: list[str], limits: Limits) -> str:
    """The page as HTML."""
    return render(
        "history.html.j2",
        folder=root.resolve().name,
        histories=histories,
        unread=unread,
        text=text,
        change_text=change_text,
        limits=limits,
        figures=history_charts(histories),
    )
