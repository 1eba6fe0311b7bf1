"""Rows of stacked bars: what something is made of, one bar a side, all rows on one scale of bytes or seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MultipleLocator

from reports.palette import COMPONENTS, INK, MUTED, PAPER, Colour
from reports.svg import SMALL, WIDTH, canvas, drawing_style, to_svg
from reports.text import plain, shorten
from suite.record import Component
from suite.units import GIB, KIB, MIB, TIB, bytes_text

LABEL_LIMIT = 50
_ROW = 58  # units a row takes: a line of text and two bars
_BAR = 15
_TAGS, _VALUES = 72, 92  # margins: 'predicted' left of a bar, its bytes right of it
_LEGEND_LINE = 18
_SHORT_NAME = 15  # names up to here leave room for three columns


@dataclass(frozen=True)
class Stack:
    """A bar: which side of a comparison, its total (None: not known), and what it is made of, in order; a line over
    it between the quartiles of what was read several times."""

    side: str
    total: float | None
    parts: tuple[tuple[StrEnum, float], ...]
    quartiles: tuple[float, float] | None = None


@dataclass(frozen=True)
class StackRow:
    """A name, a note right of it, and two bars below."""

    label: str
    note: str
    stacks: tuple[Stack, Stack]


@dataclass(frozen=True)
class Scale:
    """What bars are measured in: the colours of their parts, in the legend's order; a length as text; the axis."""

    colours: Mapping[Any, Colour]
    text: Callable[[float | None], str]
    axis: Callable[[Axes, str, float], None]


def stacks_svg(rows: Sequence[StackRow], key: str, described: str, limit: float, scale: Scale | None = None) -> str:
    """The drawing; `limit` is where the axis ends: a bar beyond it ends in an arrow. In bytes, or as `scale` says."""
    hover: dict[str, str] = {}
    scale = scale or Scale(COMPONENTS, bytes_text, byte_axis)
    with drawing_style():
        used = _used((part for row in rows for stack in row.stacks for part in stack.parts), scale)
        legend = legend_height(used)
        figure, axes = canvas(len(rows) * _ROW + 44 + legend, _TAGS, _VALUES, 4, 40 + legend)
        axes.set_xlim(0, limit)
        axes.set_ylim(len(rows) * _ROW, 0)
        for place, row in enumerate(rows):
            _draw_row(axes, row, place * _ROW, f"case{place}", hover, scale)
        scale.axis(axes, "x", limit)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        _legend(figure, used, scale.colours)
        return to_svg(figure, key, described, hover)


def _draw_row(axes: Axes, row: StackRow, top: float, name: str, hover: dict[str, str], scale: Scale) -> None:
    """A row's label, its note, and its two bars."""
    axes_width = axes.get_position().width * WIDTH
    limit = axes.get_xlim()[1]
    axes.annotate(
        shorten(plain(row.label), LABEL_LIMIT - 8), (0, top + 14), (-_TAGS + 4, 0), textcoords="offset points"
    )
    at_right = (axes_width + _VALUES - 4, 0)
    axes.annotate(row.note, (0, top + 14), at_right, textcoords="offset points", ha="right", color=MUTED.light)
    for stack, y in zip(row.stacks, (top + 20, top + 36), strict=True):
        middle = y + _BAR / 2
        style = {"fontsize": SMALL, "color": MUTED.light, "va": "center", "textcoords": "offset points"}
        axes.annotate(stack.side, (0, middle), (-6, 0), ha="right", **style)  # type: ignore[arg-type]
        edge = 0.0
        for part, size in stack.parts:
            if size > 0:
                gid = f"{name}-{stack.side}-{part.value}"
                patch = axes.barh(middle, size, _BAR - 2, left=edge, color=scale.colours[part].light)[0]
                patch.set(edgecolor=PAPER.light, linewidth=0.6, gid=gid)
                hover[gid] = f"{stack.side} {_words(part)}: {scale.text(size)}"
                edge += size
        if stack.quartiles:
            axes.plot(stack.quartiles, [middle, middle], color=INK.light, linewidth=1.4, marker="|", markersize=7)
        end = min(max(stack.total or 0, *(stack.quartiles or (0,))), limit)
        text = scale.text(stack.total) + (" →" if edge > limit else "")
        axes.annotate(text, (end, middle), (5, 0), **{**style, "color": INK.light})  # type: ignore[arg-type]


def components_used(parts: Iterable[tuple[Component | None, float | None]]) -> list[Component]:
    """The components that have any bytes to show, in their fixed order."""
    seen = {component for component, size in parts if size}
    return [component for component in Component if component in seen]


def legend_height(used: Sequence[StrEnum]) -> int:
    """Units that a legend of so many components takes."""
    return -(-len(used) // _columns(used)) * _LEGEND_LINE


def _columns(used: Sequence[StrEnum]) -> int:
    return 3 if all(len(part.value) <= _SHORT_NAME for part in used) else 2


def component_legend(figure: Figure, used: Sequence[Component]) -> None:
    """The legend, below the axes."""
    _legend(figure, used, COMPONENTS)


def _used(parts: Iterable[tuple[StrEnum, float]], scale: Scale) -> list[StrEnum]:
    """The parts that have any length, in the scale's order."""
    seen = {part for part, size in parts if size}
    return [part for part in scale.colours if part in seen]


def _words(part: StrEnum) -> str:
    return part.value.replace("_", " ")


def _legend(figure: Figure, used: Sequence[StrEnum], colours: Mapping[Any, Colour]) -> None:
    handles = [Patch(facecolor=colours[part].light, label=_words(part)) for part in used]
    style = {"ncols": _columns(used), "handlelength": 1.0, "columnspacing": 1.2, "borderaxespad": 0.2}
    figure.legend(handles=handles, loc="lower center", **style)


def byte_axis(axes: Axes, which: str, largest: float) -> None:
    """Ticks at round numbers of the binary unit that `largest` is written in."""
    unit = next((size for size in (TIB, GIB, MIB, KIB) if largest >= size), 1)
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
    step = next((step for step in steps if largest / unit / step <= 5), largest / unit / 5)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MultipleLocator(step * unit))
    axis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value, 1 if step < 1 else 0)))
