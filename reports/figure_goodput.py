"""Goodput against the checkpoint interval: the closed form, the spread of lived runs, and what three formulas pick."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from parallelism.simulator.failures import Reliability
from parallelism.simulator.goodput import goodput
from parallelism.simulator.long_run import MOST_FAILURES, Spread, lives
from reports.palette import INK, LINES, PAPER
from reports.svg import Chart, canvas, drawing_style, to_svg
from suite.parse import from_mapping, require
from suite.units import days_text, percent_text, seconds_text

_POINTS, _LIVED = 121, 9
_REACH = 6  # the axis goes so many times below and above what is marked
_LEAST = 0.02  # of the best goodput, below which an interval is not worth drawing
_MARKS = {"best": ("best", "o", INK), "young": ("Young 1974", "s", PAPER), "daly": ("Daly 2006", "D", PAPER)}
_GIVEN = ("given", "v", PAPER)
_TICKS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 4 * 3600, 12 * 3600, 86400, 7 * 86400, 30 * 86400)


def goodput_chart(failures: Mapping[str, Any], work_s: float, seeds: int, key: str) -> Chart:
    """Of what `long_run_mapping` says of failures, for a run of so much work."""
    run = from_mapping(Reliability, failures["reliability"], "reliability")
    marks = {name: item for name, item in failures["intervals"].items() if item["goodput"] is not None}
    require(bool(marks), "intervals: none of them can be drawn")
    hover: dict[str, str] = {}
    with drawing_style():
        figure, axes = canvas(316, 58, 22, 10, 96)
        low, high = _range(run, [item["interval_seconds"] for item in marks.values()], work_s)
        handles = [*_spread(axes, run, low, high, work_s, seeds, hover), _curve(axes, run, low, high)]
        handles += [_mark(axes, name, item, hover) for name, item in marks.items()]
        _scales(axes, low, high)
        figure.legend(handles=handles, loc="lower center", ncols=2, borderaxespad=0.2, handlelength=1.6)
        svg = to_svg(figure, key, "Goodput against the checkpoint interval", hover)
    best = failures["intervals"]["best"]
    caption = (
        f"A failure every {seconds_text(failures['mtbf_seconds'])} on average; a checkpoint costs"
        f" {seconds_text(run.checkpoint.blocking_s)}, a restart {seconds_text(run.recovery.restart_s)}. The best"
        f" interval is {seconds_text(best['interval_seconds'])}: {percent_text(best['goodput'])} of the time is"
        f" training that counts. The band is what {seeds} lived runs of {days_text(work_s)} of work had, 5 to 95 %."
    )
    return Chart(key, "Goodput and the checkpoint interval", caption, svg)


def _range(run: Reliability, marked: Sequence[float], work_s: float) -> tuple[float, float]:
    """The intervals that are drawn."""
    writing = run.checkpoint.writing_s - run.checkpoint.blocking_s
    low, high = max(min(marked) / _REACH, writing, 1e-3), min(max(marked) * _REACH, work_s)
    high = max(high, low * 2)
    top = max(goodput(run, interval) for interval in marked)
    while high > 2 * max(marked) and goodput(run, high) < _LEAST * top:
        high /= 1.2
    return low, high


def _spaced(low: float, high: float, count: int) -> list[float]:
    return [low * (high / low) ** (place / (count - 1)) for place in range(count)]


def _curve(axes: Axes, run: Reliability, low: float, high: float) -> Line2D:
    points = _spaced(low, high, _POINTS)
    (line,) = axes.plot(points, [goodput(run, point) for point in points], color=LINES[5].light, linewidth=2)
    line.set_label("expected")
    return line


def _spread(
    axes: Axes, run: Reliability, low: float, high: float, work_s: float, seeds: int, hover: dict[str, str]
) -> list[Patch]:
    """The band of lived runs, where living through them does not take long. Between the intervals that were lived, what
    their ends are of the closed form's goodput is a straight line."""
    found = []
    for interval in _spaced(low, min(high, work_s), _LIVED):
        useful = goodput(run, interval)
        if interval <= work_s * (1 + 1e-12) and run.per_second * work_s * seeds <= useful * MOST_FAILURES / 100:
            lived = lives(run, min(interval, work_s), work_s, seeds)
            found.append((interval, Spread.of(life.goodput for life in lived)))
    if len(found) < 2:
        return []
    logs = [math.log(interval) for interval, _ in found]
    points = _spaced(found[0][0], found[-1][0], _POINTS)
    at, means = [math.log(point) for point in points], [goodput(run, point) for point in points]
    shares = [(spread.p5 / goodput(run, interval), spread.p95 / goodput(run, interval)) for interval, spread in found]
    lows, highs = (np.interp(at, logs, ends) * means for ends in zip(*shares, strict=True))
    colour = LINES[0].light
    axes.fill_between(points, lows, highs, color=colour, linewidth=0, alpha=0.55, gid="spread")
    hover["spread"] = f"{seeds} lived runs, 5 to 95 %"
    return [Patch(color=colour, alpha=0.55, label="lived, 5 to 95 %")]


def _mark(axes: Axes, name: str, item: Mapping[str, float], hover: dict[str, str]) -> Line2D:
    words, shape, fill = _MARKS.get(name, _GIVEN)
    look = {"color": INK.light, "markerfacecolor": fill.light, "markeredgewidth": 1.6, "linestyle": "none"}
    size = 6 if name == "best" else 10 if name == "young" else 8
    x, y = item["interval_seconds"], item["goodput"]
    axes.plot([x], [y], marker=shape, markersize=size, zorder=6 if name == "best" else 5, gid=f"mark-{name}", **look)  # type: ignore[arg-type]
    hover[f"mark-{name}"] = f"{words}: {seconds_text(x)}, goodput {percent_text(y, 3)}"
    return Line2D([], [], marker=shape, markersize=6, label=f"{words}: {seconds_text(x)}", **look)  # type: ignore[arg-type]


def _scales(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    inside = [tick for tick in _TICKS if low <= tick <= high]
    every = max(1, math.ceil(len(inside) / 6))
    axes.set_xticks(inside[::every], [_tick_text(tick) for tick in inside[::every]])
    axes.minorticks_off()
    axes.set_ylim(max(0.0, axes.get_ylim()[0]), min(1.0, axes.get_ylim()[1]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.4g} %")
    axes.set_xlabel("training between two checkpoints")
    axes.set_ylabel("goodput")
    axes.grid(axis="y")


def _tick_text(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
