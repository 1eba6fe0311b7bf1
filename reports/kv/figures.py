"""Figures of serving: what each cache takes over the context beside what there is, tokens/s over the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from reports.kv.curves import Line
from reports.palette import BAD, INK, LINES, MUTED
from reports.svg import SMALL, Chart, canvas, drawing_style, to_svg
from reports.text import plain, shorten
from suite.units import bytes_text, count_text, short_count_text

#: the hues of choices, the case itself first; the strongest of the palette's lines before its pale ones
_HUES = (LINES[5], LINES[1], LINES[2], LINES[3], LINES[4], LINES[6], LINES[7], LINES[0])
_MARKERS = "osD^vPX*"
_DASHES = ((), (5, 2), (2, 1.5), (7, 2, 1.5, 2))
_NAME = 22  # letters of a choice's name in a legend


def cache_chart(lines: Sequence[Line], room: int | None, device: int | None, context: int, where: str) -> Chart:
    """Bytes of each choice's cache over the context; `room` is what is left for it, `device` all there is."""
    hover: dict[str, str] = {}
    title = f"Cache over the context, {where}"
    with drawing_style():
        figure, axes = _axes_with_legend(len(lines) + 2)
        for place, line in enumerate(lines):
            _draw(axes, place, line)
            for at, (tokens, nbytes) in enumerate(line.points):
                hover[f"p{place}-{at}"] = f"{plain(line.name)}, {count_text(tokens)} tokens: {bytes_text(nbytes)}"
        if room is not None and room > 0:
            axes.axhline(room, color=BAD.light, linewidth=1.4, label="left beside weights")
        if device is not None:
            axes.axhline(device, color=INK.light, linewidth=1.4, dashes=(6, 2), label="the device's memory")
        axes.axvline(context, color=MUTED.light, linewidth=0.9, dashes=(2, 2))
        _scales(axes, lines, "context, tokens", "bytes a rank", bytes_ticks=True)
        _legend(axes)
        svg = to_svg(figure, "serving-cache", title, hover)
    caption = f"A rank's cache {where}; dotted: the context asked for. Above the red line it does not fit."
    return Chart("serving-cache", "Cache against context", caption, svg)


def rate_chart(lines: Sequence[Line], roofs: Sequence[Line], largest: int, where: str) -> Chart:
    """Tokens a second of each choice over the batch, up to the largest that fits, under the case's own roofline."""
    hover: dict[str, str] = {}
    title = f"Tokens a second over the batch, {where}"
    with drawing_style():
        figure, axes = _axes_with_legend(len(lines) + len(roofs))
        for place, roof in enumerate(roofs):
            xs, ys = zip(*roof.points, strict=True)
            axes.plot(xs, ys, color=MUTED.light, linewidth=1.2, dashes=_DASHES[place + 1], label=roof.name)
        for place, line in enumerate(lines):
            _draw(axes, place, line)
            for at, (batch, rate) in enumerate(line.points):
                hover[f"p{place}-{at}"] = f"{plain(line.name)}, batch {count_text(batch)}: {count_text(rate)} tokens/s"
        axes.axvline(largest, color=MUTED.light, linewidth=0.9, dashes=(2, 2))
        _scales(axes, [*lines, *roofs], "batch, sequences", "tokens/s", bytes_ticks=False)
        rates = [rate for line in lines for _, rate in line.points]
        tops = [roof.points[-1][1] for roof in roofs]
        axes.set_ylim(min(rates) / 1.5, max([*rates, *tops]) * 1.5)
        _legend(axes)
        svg = to_svg(figure, "serving-rate", title, hover)
    caption = (
        f"Predicted {where}; each line ends at the largest batch that fits (dotted: the case's own). The roofline"
        " is the case's, if reading or computing alone took time."
    )
    return Chart("serving-rate", "Tokens a second against batch", caption, svg)


def _axes_with_legend(entries: int) -> Any:
    rows = -(-entries // 2)
    return canvas(240 + 19 * rows, 66, 14, 12 + 19 * rows, 44)


def _draw(axes: Axes, place: int, line: Line) -> None:
    colour = _HUES[place % len(_HUES)].light
    xs, ys = zip(*line.points, strict=True)
    axes.plot(
        xs, ys, color=colour, linewidth=2.4 if not place else 1.7, dashes=_DASHES[place // len(_HUES) % len(_DASHES)],
        label=shorten(plain(line.name), _NAME), zorder=4 - place / 100,
    )  # fmt: skip
    for at, (x, y) in enumerate(line.points):
        axes.plot(
            [x], [y], gid=f"p{place}-{at}", linestyle="", color=colour, marker=_MARKERS[place % len(_MARKERS)],
            markersize=4.5, zorder=4 - place / 100,
        )  # fmt: skip


def _scales(axes: Axes, lines: Sequence[Line], x_name: str, y_name: str, *, bytes_ticks: bool) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2 if bytes_ticks else 10)
    if bytes_ticks:
        axes.yaxis.set_major_locator(LogLocator(base=2, numticks=8))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value, 0)))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=10))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count_text(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    sizes = sorted({size for line in lines for size, _ in line.points if size & (size - 1) == 0})
    axes.xaxis.set_major_locator(FixedLocator(sizes[:: 1 + (len(sizes) - 1) // 5]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _size_text(int(value))))
    axes.set_xlabel(x_name)
    axes.set_title(y_name, size=SMALL, color=MUTED.light, loc="left", pad=4)
    axes.grid(axis="y")


def _size_text(size: int) -> str:
    """A power of two: 32768 -> '32Ki'."""
    return f"{size >> 20}Mi" if size >= 2**20 else f"{size >> 10}Ki" if size >= 2**10 else str(size)


def _legend(axes: Axes) -> None:
    above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.14, 1.06), "borderaxespad": 0.2}
    axes.legend(ncols=2, handlelength=2.2, columnspacing=1.2, labelspacing=0.3, **above)
