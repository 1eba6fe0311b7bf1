"""Loss curves of all layouts on one axis: where they coincide, every line has to stay visible."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from reports.palette import INK, LINES, MUTED
from reports.summary import LossGroup, variant
from reports.svg import SMALL, WIDTH, Chart, axes_in, canvas, drawing_style, to_svg
from reports.text import plain, shorten
from suite.units import number_text

_PANEL, _DISTANCE, _GAP = 230, 92, 34  # heights in units: curves, distances, and the room between
_LEGEND_LINE = 18
_LEGEND_LABEL = 42
_SHORT_LABEL = 18  # labels up to here leave room for two columns
_WIDEST, _NARROWEST = 9.0, 1.8
_FLOOR = 1e-9  # distances below it are drawn on it: a logarithm has no zero
_DASHES = ((), (7, 3), (2, 3), (10, 3, 2, 3), (4, 4), (12, 5), (1, 2), (6, 2, 1, 2, 1, 2))
_MARKERS = "osD^vP*X"


def loss_chart(group: LossGroup, key: str, names: Sequence[str] | None = None) -> Chart:
    """A group's training curves over one another, widest below; validation points; what guessing by frequency loses.

    Curves are called as `names` says, by default by what tells their cases apart.
    """
    several = len(group.cases) > 1
    names = [plain(name) for name in names or (variant(case.case) for case in group.cases)]
    columns = 2 if max(map(len, names)) <= _SHORT_LABEL else 1
    legend = -(-(len(group.cases) + 1) // columns) * _LEGEND_LINE + 8
    below = legend + 38 + (_DISTANCE + _GAP if several else 0)
    left = 54
    hover: dict[str, str] = {}
    with drawing_style():
        figure, axes = canvas(_PANEL + below, left, 10, 10, below)
        handles = _draw_curves(axes, group, names, hover)
        axes.set_ylabel("loss, nats a token")
        axes.grid(axis="y")
        last = axes
        if several:
            last = axes_in(figure, left, legend + 38, WIDTH - left - 10, _DISTANCE)
            _draw_distances(last, group)
            last.set_xlim(axes.get_xlim())
        last.set_xlabel("optimizer step")
        figure.legend(handles=handles, loc="lower center", ncols=columns, handlelength=3.2, borderaxespad=0.2)
        svg = to_svg(figure, key, f"Loss curves of {plain(group.title)}", hover)
    return Chart(key, f"Loss: {plain(group.title)}", _caption(group), svg)


def _caption(group: LossGroup) -> str:
    if group.spread is None:
        return "Training loss by step. No other case of this run has to give the same curve."
    return (
        f"{len(group.cases)} layouts, the same global batches. Over {group.spread.steps} steps they are nowhere further"
        f" apart than {number_text(group.spread.relative, 2)} of the loss (step {group.spread.step}). Below: each"
        " curve's distance from the first."
    )


def _draw_curves(axes: Axes, group: LossGroup, names: Sequence[str], hover: dict[str, str]) -> list[Line2D]:
    """The curves, each narrower than the one below it, and what each says; returns the legend's handles."""
    handles = []
    for place, case in enumerate(group.cases):
        style = _style(place, len(group.cases))
        steps = [step for step, _ in case.curve.training]
        losses = [_finite(loss) for _, loss in case.curve.training]
        axes.plot(steps, losses, gid=f"curve{place}", **style)  # type: ignore[arg-type]
        hover[f"curve{place}"] = f"{names[place]}: {number_text(case.curve.final, 6)} at step {steps[-1]}"
        label = shorten(names[place], _LEGEND_LABEL)
        handles.append(Line2D([], [], label=label, **style))  # type: ignore[arg-type]
        if case.curve.validation:
            points = [(step, _finite(loss)) for step, loss in case.curve.validation]
            size = 11 - 8 * place / max(1, len(group.cases) - 1) if len(group.cases) > 1 else 7
            colour, shape = style["color"], _MARKERS[place % len(_MARKERS)]
            look = {"marker": shape, "markersize": size, "markeredgecolor": colour, "markerfacecolor": "none"}
            axes.plot(*zip(*points, strict=True), linestyle="none", **look)  # type: ignore[arg-type]
    if any(case.curve.validation for case in group.cases):
        validation = {"marker": "D", "markersize": 6, "markerfacecolor": "none", "markeredgecolor": MUTED.light}
        handles.append(Line2D([], [], linestyle="none", label="validation", **validation))  # type: ignore[arg-type]
    entropy = group.cases[0].curve.unigram_entropy
    if entropy is not None:
        axes.axhline(entropy, color=MUTED.light, linewidth=1, dashes=(3, 3))
        note = f"guessing by frequency, {number_text(entropy, 3)}"
        axes.annotate(note, (1, entropy), (-4, 4), ("axes fraction", "data"), "offset points", ha="right", size=SMALL)
    return handles


def _draw_distances(axes: Axes, group: LossGroup) -> None:
    """Relative distance of every curve from the first, on a logarithmic axis with a floor."""
    first = dict(group.cases[0].curve.training)
    for place, case in enumerate(group.cases[1:], start=1):
        shared = [(step, loss) for step, loss in case.curve.training if first.get(step)]
        distances = [max(_FLOOR, abs(_finite(loss) / first[step] - 1)) for step, loss in shared]
        style = {**_style(place, len(group.cases)), "linewidth": 1.2}
        axes.plot([step for step, _ in shared], distances, **style)  # type: ignore[arg-type]
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, _FLOOR * 0.7), max(high, 1e-6))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-"))
    axes.locator_params(axis="y", numticks=5)
    axes.set_ylabel("distance", color=INK.light)
    axes.grid(axis="y")


def _style(place: int, count: int) -> dict[str, object]:
    """Colour, width and dash of the curve at that place; widths fall so that a curve below is seen around the next."""
    share = place / max(1, count - 1)
    width = _WIDEST + (_NARROWEST - _WIDEST) * share if count > 1 else 2.0
    style: dict[str, object] = {"color": LINES[place % len(LINES)].light, "linewidth": width}
    dashes = _DASHES[place % len(_DASHES)]
    return {**style, "dashes": dashes} if dashes else style


def _finite(value: float) -> float:
    """A gap in the line where the loss is no number."""
    return value if math.isfinite(value) else math.nan
