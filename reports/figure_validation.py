"""A quantity's predictions drawn: each over its published figure, and how many are how far off."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from reports.palette import COMPONENTS, INK, LINES, MUTED
from reports.svg import Chart, canvas, drawing_style, to_svg
from reports.text import plain, plural, shorten
from reports.validate import QuantityResult, Result
from reports.validation_tables import error_text, figure_text, unit_of
from suite.record import Component
from suite.units import percent_text

#: fewer rows than these are read faster in the table
LEAST_ROWS = 5
#: sources of one drawing with a colour of their own
_SOURCES = len(LINES) - 1
_MARKERS = "osD^vP*X"
#: widths of a bar of the histogram; the narrowest that needs no more than _BARS on a side is taken
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_BARS = 10
_LEGEND_LINE = 18
_TICKS, _MANTISSAS = 4, ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9))


def quantity_charts(found: QuantityResult, key: str) -> tuple[Chart, ...]:
    """Both figures, where enough rows have an error."""
    drawn = [result for result in found.results if result.error is not None and _is_positive(result)]
    if len(drawn) < LEAST_ROWS:
        return ()
    return scatter_chart(found.quantity, drawn, f"{key}-scatter"), error_histogram(found, f"{key}-errors")


def scatter_chart(quantity: str, results: Sequence[Result], key: str) -> Chart:
    """A point a row on two logarithmic axes, a colour and a shape a source; on the line both sides are equal."""
    counts = Counter(result.row.family for result in results)
    sources = [name for name, _ in counts.most_common(_SOURCES)]
    hover: dict[str, str] = {}
    lines = -(-(len(sources) + (len(counts) > len(sources))) // 2)
    with drawing_style():
        figure, axes = canvas(330 + lines * _LEGEND_LINE, 84, 14, 10, 46 + lines * _LEGEND_LINE)
        for place, result in enumerate(results):
            gid = f"row{place}"
            marker = {"markersize": 6.5, "alpha": 0.75, "markeredgewidth": 0, "gid": gid, **_look(result, sources)}
            axes.plot([result.published], [result.prediction.value], linestyle="", **marker)  # type: ignore[arg-type]
            hover[gid] = _said(quantity, result)
        _log_axes(axes, quantity, results)
        handles = [
            Line2D([], [], linestyle="", label=shorten(plain(f"{name} ({counts[name]})"), 26), **_style(place))  # type: ignore[arg-type]
            for place, name in enumerate(sources)
        ]
        if len(counts) > len(sources):
            rest = sum(counts.values()) - sum(counts[name] for name in sources)
            handles.append(Line2D([], [], linestyle="", label=f"other sources ({rest})", **_style(len(sources))))  # type: ignore[arg-type]
        figure.legend(handles=handles, loc="lower center", ncols=2, handletextpad=0.2, borderaxespad=0.2)
        label = f"{_name(quantity)}: predicted over published, {plural(len(results), 'row')}"
        svg = to_svg(figure, key, label, hover)
    caption = "A point a row, logarithmic axes; on the line, predicted and published are equal."
    return Chart(key, f"{_name(quantity)}: predicted against published", caption, svg)


def error_histogram(found: QuantityResult, key: str) -> Chart:
    """How many scored rows are how far off; the outermost bars hold everything beyond."""
    errors = found.score.errors
    width = next((step for step in _STEPS if max(map(abs, errors), default=0) <= step * _BARS), _STEPS[-1])
    counts = Counter(max(-_BARS, min(_BARS - 1, math.floor(error / width + 0.5))) for error in errors)
    hover: dict[str, str] = {}
    with drawing_style():
        figure, axes = canvas(250, 52, 26, 10, 44)
        axes.axvline(0, color=MUTED.light, linewidth=1, zorder=0.5)
        for place, count in sorted(counts.items()):
            low, high = (place - 0.5) * width, (place + 0.5) * width
            inside = place == 0
            colour = COMPONENTS[Component.OPTIMIZER if inside else Component.PARAMETERS].light
            axes.bar(place * width, count, width * 0.9, color=colour, gid=f"bar{place}")
            hover[f"bar{place}"] = f"{_range(low, high, place)}: {plural(count, 'row')}"
        axes.set_xlim(-_reach(counts) * width, _reach(counts) * width)
        axes.xaxis.set_major_locator(MaxNLocator(4, symmetric=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent_text(value, 0 if width >= 0.01 else 1)))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("(predicted - published) / published")
        axes.set_ylabel("rows")
        axes.grid(axis="y")
        svg = to_svg(figure, key, f"Errors of {_name(found.quantity)}: how many rows are how far off", hover)
    score = found.score
    caption = (
        f"{plural(len(errors), 'row')} scored: mean {percent_text(score.mean_absolute)}, worst"
        f" {percent_text(score.worst, signed=True)}, bias {percent_text(score.bias, signed=True)}."
    )
    return Chart(key, f"{_name(found.quantity)}: errors", caption, svg)


def _reach(counts: Counter[int]) -> float:
    return max(3, *(abs(place) + 1 for place in counts)) if counts else 3


def _range(low: float, high: float, place: int) -> str:
    digits = 1 if high - low >= 0.01 else 2
    if place == -_BARS:
        return f"below {percent_text(high, digits, signed=True)}"
    if place == _BARS - 1:
        return f"above {percent_text(low, digits, signed=True)}"
    return f"{percent_text(low, digits, signed=True)} to {percent_text(high, digits, signed=True)}"


def _log_axes(axes: Axes, quantity: str, results: Sequence[Result]) -> None:
    """Both axes alike, with the line of equality."""
    values = [value for r in results for value in (r.published, r.prediction.value) if value]
    low, high = min(values) / 1.25, max(values) * 1.25
    axes.plot([low, high], [low, high], color=MUTED.light, linewidth=1, zorder=0.5)
    ticks = _ticks(low, high, is_binary=_is_binary(quantity))
    for axis, set_scale, set_limits in (
        (axes.xaxis, axes.set_xscale, axes.set_xlim),
        (axes.yaxis, axes.set_yscale, axes.set_ylim),
    ):
        set_scale("log")
        set_limits(low, high)
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(quantity, value)))
        axis.set_minor_formatter(NullFormatter())
        axis.set_tick_params(which="minor", length=0)
    unit = f", {unit_of(quantity)}" if unit_of(quantity) else ""
    axes.set_xlabel(f"published{unit}", color=INK.light)
    axes.set_ylabel(f"predicted{unit}", color=INK.light)
    axes.grid()


def _ticks(low: float, high: float, is_binary: bool) -> list[float]:
    """Up to four or five round places: powers of two, or of ten and what lies between them."""
    powers = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    grids = [[2.0**n for n in powers]] if is_binary else [[m * 10.0**n for n in tens for m in ms] for ms in _MANTISSAS]
    found: list[float] = []
    for grid in grids:  # the coarsest with two places or more
        found = [place for place in grid if low <= place <= high]
        if len(found) > 1:
            break
    return found[:: max(1, math.ceil(len(found) / _TICKS))]


def _tick(quantity: str, value: float) -> str:
    """Bytes with their unit; of others the axis says it."""
    text = figure_text(quantity, value if _is_binary(quantity) else float(f"{value:.3g}"))
    return text.replace(".00 ", " ") if _is_binary(quantity) else text.removesuffix(unit_of(quantity)).strip()


def _is_binary(quantity: str) -> bool:
    return figure_text(quantity, 2.0**30) == "1.00 GiB"


def _look(result: Result, sources: Sequence[str]) -> dict[str, object]:
    family = result.row.family
    return _style(sources.index(family) if family in sources else len(sources))


def _style(place: int) -> dict[str, object]:
    return {"color": LINES[(place + 1) % len(LINES)].light, "marker": _MARKERS[place % len(_MARKERS)]}


def _said(quantity: str, result: Result) -> str:
    row = result.row
    published, predicted = (figure_text(quantity, value) for value in (result.published, result.prediction.value))
    both = f"published {published}, predicted {predicted}"
    return plain(f"{row.row_id} {row.text('model')}: {both}, {error_text(result)}")


def _is_positive(result: Result) -> bool:
    """Has the row a place on a logarithmic axis?"""
    return bool(result.published) and min(result.published or 0.0, result.prediction.value) > 0


def _name(quantity: str) -> str:
    """With a capital: 'step_seconds' -> 'Step seconds'."""
    return quantity[:1].upper() + quantity[1:].replace("_", " ")
