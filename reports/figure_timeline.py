"""A step's memory as it goes: stacked by component through forward, loss, backward and optimizer, with what was
measured at its moments as points on it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from reports.compare import CaseComparison
from reports.figure_memory import byte_axis, component_legend, legend_height
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
_RIBBON = 17  # height of the strip that names the phases
_LETTER = 6.4  # width of one in SMALL


def timeline_chart(case: CaseComparison, line: Timeline, ranks: Sequence[int], key: str) -> Chart:
    """The timeline of a rank, or of several that are alike."""
    hover: dict[str, str] = {}
    used = [part for part in Component if any(line.nbytes.get(part, ()))]
    with drawing_style():
        legend = legend_height(used)
        figure, axes = canvas(262 + legend, _LEFT, _RIGHT, 22, _RIBBON + 12 + legend)
        top = 1.04 * max(*line.totals, *(size for _, size in _measured(case, line)), 1)
        axes.set_xlim(line.at[0], max(line.at[-1], line.at[0] + 1))
        axes.set_ylim(0, top)
        _stack(axes, line, used, hover)
        _phases(axes, line, hover)
        _peak(axes, line)
        for place, (moment, size) in enumerate(_measured(case, line)):
            x = line.at[line.moments[moment]]
            look = {"color": INK.light, "markerfacecolor": PAPER.light, "markersize": 6, "markeredgewidth": 1.6}
            axes.plot([x], [size], "o", clip_on=False, gid=f"measured{place}", zorder=5, **look)  # type: ignore[arg-type]
            hover[f"measured{place}"] = f"{_name(moment)}: measured {bytes_text(size)}, {_said(line, moment)}"
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
    """The strip below the axis: a box a phase, named where the name fits."""
    transform = axes.get_xaxis_transform()
    width, height = (size * 72 for size in axes.figure.get_size_inches())  # type: ignore[union-attr]
    box = axes.get_position()
    scale = box.width * width / max(1, line.at[-1] - line.at[0])
    strip = _RIBBON / (box.height * height)
    start = line.at[0]
    for place, span in enumerate(line.spans):
        name, middle = _PHASES[span.window], (start + span.until) / 2
        ends = axes.fill_between([start, span.until], -strip, -0.01, transform=transform, clip_on=False)
        ends.set(facecolor=GRID.light if place % 2 else PAPER.light, edgecolor=GRID.light, linewidth=0.8)
        ends.set_gid(f"phase{place}")
        hover[f"phase{place}"] = name
        if (span.until - start) * scale >= len(name) * _LETTER + 4:
            look = {"ha": "center", "va": "center", "size": SMALL, "color": MUTED.light}
            axes.text(middle, -strip / 2 - 0.005, name, transform=transform, **look)  # type: ignore[arg-type]
        start = span.until


def _peak(axes: Axes, line: Timeline) -> None:
    """The highest point: a line up to its bytes, written at the side that has the room."""
    place = max(range(len(line.at)), key=line.totals.__getitem__)
    x, size = line.at[place], line.totals[place]
    axes.plot([x, x], [0, size], color=INK.light, linewidth=1, dashes=(3, 3))
    axes.plot([x], [size], marker="v", markersize=7, color=INK.light, clip_on=False, zorder=6)
    is_late = x - line.at[0] > (line.at[-1] - line.at[0]) / 2
    look = {
        "textcoords": "offset points",
        "ha": "right" if is_late else "left",
        "size": SMALL,
        "annotation_clip": False,
    }
    axes.annotate(f"predicted peak {bytes_text(size)}", (x, size), (-8 if is_late else 8, 5), **look)  # type: ignore[arg-type]


def _measured(case: CaseComparison, line: Timeline) -> list[tuple[Moment, float]]:
    """What was measured at the moments that the timeline passes."""
    rows = ((moment, case.memory(None, line.rank, moment)) for moment in line.moments)
    return [(moment, row.measured) for moment, row in rows if row and row.measured is not None]


def _said(line: Timeline, moment: Moment) -> str:
    return f"predicted {bytes_text(line.totals[line.moments[moment]])}"


def _name(moment: Moment) -> str:
    return moment.value.replace("_", " ")


def _caption(line: Timeline, ranks: Sequence[int], case: CaseComparison) -> str:
    who = ranks_text(ranks)
    text = f"{who[0].upper()}{who[1:]}. Left to right: allocations and frees of one step, as predicted."
    if _measured(case, line):
        text += " Circles: measured at the step's moments."
    if line.micro_batches < case.case.workload.micro_batches:
        text += f" Of {case.case.workload.micro_batches} micro-batches the first two and the last are drawn."
    return text
