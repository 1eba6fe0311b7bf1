"""A case's quantity over runs: median and quartiles by commit, marked where it changed."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from reports.history.collect import History, Point, Series
from reports.history.text import change_line, changed_first, machines
from reports.judge import Verdict
from reports.palette import BAD, COMPONENTS, GOOD, MUTED
from reports.svg import SMALL, Chart, canvas, drawing_style, to_svg
from reports.text import plain
from suite.record import Component

#: figures of a page: cases that changed first
DRAWN_CASES = 24
_TICKS = 5
_LEAST_SPAN = 0.01
_LINE = COMPONENTS[Component.PARAMETERS].light


def history_charts(histories: tuple[History, ...]) -> tuple[Chart, ...]:
    """A figure a case, up to DRAWN_CASES of each quantity and machine."""
    return tuple(
        _chart(history, series, f"history-{number}-{group}-{place}")
        for number, history in enumerate(histories)
        for group, machine in enumerate(machines(history))
        for place, series in enumerate(changed_first(history, machine)[:DRAWN_CASES])
    )


def _chart(history: History, series: Series, key: str) -> Chart:
    text, hover = history.measure.text, {}
    with drawing_style():
        figure, axes = canvas(210, 76, 14, 10, 40)
        medians = [point.summary.median for point in series.points]
        places = range(len(medians))
        lows, highs = zip(*(point.ends for point in series.points), strict=True)
        axes.vlines(list(places), lows, highs, color=_LINE, linewidth=3, alpha=0.35)
        axes.plot(list(places), medians, color=_LINE, linewidth=1.2)
        for place, point in enumerate(series.points):
            name = f"point{place}"
            axes.plot([place], [medians[place]], linestyle="", gid=name, **_look(point))
            hover[name] = _text(history, series, point)
        _axes(axes, series)
        axes.yaxis.set_major_formatter(lambda value, _: text(value))
        axes.locator_params(axis="y", nbins=5)
        svg = to_svg(figure, key, plain(f"{history.measure.title} of {series.label} over runs"), hover)
    said = "; ".join(change_line(point) for point in series.changes) or "No change between commits was found"
    return Chart(key, f"{plain(series.label)}: {history.measure.title}", f"{said}. Thick: quartiles.", svg)


def _look(point: Point) -> dict[str, Any]:
    """A dot; where the quantity changed, a triangle that points the way it went."""
    judged = point.change
    if judged is None or not judged.is_found:
        return {"marker": "o", "markersize": 5.5, "color": _LINE}
    colour = BAD if judged.verdict is Verdict.WORSE else GOOD
    return {"marker": "^" if judged.change > 0 else "v", "markersize": 10, "color": colour.light}


def _axes(axes: Axes, series: Series) -> None:
    count = len(series.points)
    labels = [plain(point.origin.short) for point in series.points]
    changes = [place for place in range(count) if not place or labels[place] != labels[place - 1]]
    ticks = changes[:: -(-len(changes) // _TICKS)]
    axes.set_xticks(ticks, [labels[place] for place in ticks], size=SMALL)
    low, high = axes.get_ylim()
    middle = abs(low + high) / 2
    if high - low < _LEAST_SPAN * middle:  # what hardly differs is drawn as a level line
        axes.set_ylim(low - _LEAST_SPAN * middle, high + _LEAST_SPAN * middle)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_xlabel("commit, in the order of the runs", color=MUTED.light)
    axes.grid(axis="y")


def _text(history: History, series: Series, point: Point) -> str:
    """What a point says."""
    text, (low, high) = history.measure.text, point.ends
    origin, summary = point.origin, point.summary
    between = f", {text(low)} to {text(high)}, {summary.count} readings" if summary.count > 1 else ""
    changed = f"; {change_line(point)}" if point.change and point.change.is_found else ""
    return plain(f"{origin.label}, run {origin.run}, {origin.created}: {text(summary.median)}{between}{changed}")
