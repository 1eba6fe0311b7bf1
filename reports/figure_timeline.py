"""A step's memory as it goes: stacked by component through forward, loss, backward and optimizer, with what was
measured at its moments as points on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from reports.compare import CaseComparison
from reports.figure_stacks import byte_axis, component_legend, legend_height
from reports.palette import COMPONENTS, GRID, INK, MUTED, PAPER
from reports.svg import SMALL, Chart, canvas, drawing_style, to_svg
from reports.text import plain
from suite.record import Component, Moment
from suite.timeline import Timeline
from suite.units import bytes_text

_PHASES = {
    Moment.FORWARD_PEAK: "forward",
    Moment.LOSS: "loss",
    Moment.BACKWARD_PEAK: "backward",
    Moment.OPTIMIZER_PEAK: "optimizer",
}
_LEFT, _RIGHT = 68, 10
_STRIP, _NAMES = 6, 18  # heights of the strip of phases, and of their names below it
_LETTER = 6.4  # width of one in SMALL


def timeline_chart(case: CaseComparison, line: Timeline, ranks: Sequence[int], key: str) -> Chart:
    """The timeline of a rank, or of several that are alike."""
    hover: dict[str, str] = {}
    measured = _measured(case, line)
    used = [part for part in Component if any(line.nbytes.get(part, ()))]
    with drawing_style():
        legend = legend_height(used)
        figure, axes = canvas(286 + legend, _LEFT, _RIGHT, 36, _STRIP + _NAMES + 8 + legend)
        top = 1.04 * max(*line.totals, *measured.values(), 1)
        axes.set_xlim(line.at[0], max(line.at[-1], line.at[0] + 1))
        axes.set_ylim(0, top)
        _stack(axes, line, used, hover)
        _phases(axes, line, hover)
        _peaks(axes, line, measured)
        _circles(axes, line, measured, hover)
        byte_axis(axes, "y", top)
        axes.set_xticks([])
        component_legend(figure, used)
        title = f"Memory of {plain(case.case.label)} over a step, {ranks_text(ranks)}"
        svg = to_svg(figure, key, title, hover)
    return Chart(key, f"Over a step: {plain(case.case.label)}", _caption(line, ranks, case), svg)


def ranks_text(ranks: Sequence[int]) -> str:
    """'rank 0', 'ranks 0 to 3', 'ranks 0, 2'."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]} to {ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks))}"


def _stack(axes: Axes, line: Timeline, used: Sequence[Component], hover: dict[str, str]) -> None:
    colours = [COMPONENTS[part].light for part in used]
    for part, layer in zip(
        used, axes.stackplot(line.at, *(line.nbytes[part] for part in used), colors=colours), strict=True
    ):
        layer.set(linewidth=0, gid=f"layer-{part.value}")
        hover[f"layer-{part.value}"] = f"{part.value}: at most {bytes_text(max(line.nbytes[part]))}"


def _phases(axes: Axes, line: Timeline, hover: dict[str, str]) -> None:
    """The strip below the axis: a box a phase, and under it the names, of the longest phases first, that fit."""
    transform = axes.get_xaxis_transform()
    width, height = (size * 72 for size in axes.figure.get_size_inches())  # type: ignore[union-attr]
    box = axes.get_position()
    unit = box.height * height
    scale = box.width * width / max(1, line.at[-1] - line.at[0])
    starts = [line.at[0], *(span.until for span in line.spans)]
    taken: list[tuple[float, float]] = []
    for place, span in sorted(enumerate(line.spans), key=lambda item: starts[item[0]] - item[1].until):
        name, middle = _PHASES[span.window], (starts[place] + span.until) / 2
        strip = axes.fill_between([starts[place], span.until], -_STRIP / unit, 0, transform=transform, clip_on=False)
        colour = GRID.light if place % 2 else MUTED.light
        strip.set(facecolor=colour, edgecolor=PAPER.light, linewidth=0.8, gid=f"phase{place}")
        hover[f"phase{place}"] = name
        half = (len(name) * _LETTER / 2 + 4) / scale
        if all(middle + half < left or middle - half > right for left, right in taken):
            taken.append((middle - half, middle + half))
            look = {"ha": "center", "va": "top", "size": SMALL, "color": MUTED.light}
            axes.text(middle, -(_STRIP + 3) / unit, name, transform=transform, **look)  # type: ignore[arg-type]


def _peaks(axes: Axes, line: Timeline, measured: Mapping[Moment, float]) -> None:
    """A line up to the highest predicted point, and above the drawing how high it and the highest measured one are."""
    place = max(range(len(line.at)), key=line.totals.__getitem__)
    x, size = line.at[place], line.totals[place]
    axes.plot([x, x], [0, size], color=INK.light, linewidth=1, dashes=(3, 3))
    centred = {"textcoords": "offset points", "ha": "center", "size": SMALL, "annotation_clip": False}
    axes.annotate("▼", (x, size), (0, 5), **centred)  # type: ignore[arg-type]
    text = f"▼ predicted peak {bytes_text(size)}"
    if measured:
        text += f"   ● measured {bytes_text(max(measured.values()))}"
    axes.annotate(text, (0, 1), (0, 18), "axes fraction", "offset points", size=SMALL, annotation_clip=False)


def _circles(axes: Axes, line: Timeline, measured: Mapping[Moment, float], hover: dict[str, str]) -> None:
    """What was measured at each moment; the highest is filled."""
    for place, (moment, size) in enumerate(measured.items()):
        filled = size == max(measured.values())
        look = {"color": INK.light, "markerfacecolor": (INK if filled else PAPER).light, "markersize": 6}
        x, name = line.at[line.moments[moment]], f"measured{place}"
        axes.plot([x], [size], "o", clip_on=False, gid=name, zorder=5, markeredgewidth=1.6, **look)  # type: ignore[arg-type]
        said = bytes_text(line.totals[line.moments[moment]])
        hover[name] = f"{moment.value.replace('_', ' ')}: measured {bytes_text(size)}, predicted {said}"


def _measured(case: CaseComparison, line: Timeline) -> dict[Moment, float]:
    """What was measured at the moments that the timeline passes."""
    rows = ((moment, case.memory(None, line.rank, moment)) for moment in line.moments)
    return {moment: row.measured for moment, row in rows if row and row.measured is not None}


def _caption(line: Timeline, ranks: Sequence[int], case: CaseComparison) -> str:
    who = ranks_text(ranks)
    text = f"{who[0].upper()}{who[1:]}. Left to right: allocations and frees of one step, as predicted."
    if _measured(case, line):
        text += " Circles: measured at the step's moments, the highest filled."
    if line.micro_batches < case.case.workload.micro_batches:
        text += f" Of {case.case.workload.micro_batches} micro-batches the first two and the last are drawn."
    return text
