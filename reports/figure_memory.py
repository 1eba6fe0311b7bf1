"""Memory by component, predicted beside measured: at the peak of every case, and over the moments of one step."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from reports.compare import CaseComparison, Instant
from reports.figure_stacks import (
    Stack,
    StackRow,
    byte_axis,
    component_legend,
    components_used,
    legend_height,
    stacks_svg,
)
from reports.palette import COMPONENTS, PAPER
from reports.summary import RunComparison
from reports.svg import Chart, canvas, drawing_style, to_svg
from reports.text import plain
from reports.wording import instant_text
from suite.record import Moment
from suite.units import bytes_text, percent_text


def peak_charts(comparison: RunComparison) -> list[Chart]:
    """Stacked bars of every case's peak, the predicted one above the measured one; a chart a model.

    Cases of one model share a scale, so that what a layout saves can be seen; models of other sizes would hide it.
    """
    models: dict[str, list[CaseComparison]] = {}
    for case in comparison.opened:
        if _instants(case):
            models.setdefault(case.case.model.name, []).append(case)
    return [
        peak_chart(name, [(case.case.label, case) for case in cases], f"peak-{place}")
        for place, (name, cases) in enumerate(models.items())
    ]


def peak_chart(title: str, cases: Sequence[tuple[str, CaseComparison]], key: str) -> Chart:
    """The chart of these cases, each under its name."""
    rows = [
        StackRow(
            name,
            percent_text(case.peak.error, signed=True) if case.is_ok else case.status,
            (_stack(case, "predicted", case.peak.predicted), _stack(case, "measured", case.peak.measured)),
        )
        for name, case in cases
    ]
    described = f"Predicted and measured peak memory of {plain(title)}, by component"
    caption = (
        "The fullest rank at its fullest moment, predicted and measured each at their own; right of the name, the error"
        " of the prediction. A bar that ends in an arrow goes on."
    )
    svg = stacks_svg(rows, key, described, _limit([case for _, case in cases]))
    return Chart(key, f"Peak memory by component: {plain(title)}", caption, svg)


def _stack(case: CaseComparison, side: str, instant: Instant | None) -> Stack:
    """What is held at an instant, on one side."""
    found = case.components_at(instant) if instant else ()
    sizes = ((row.component, row.predicted if side == "predicted" else row.measured) for row in found)
    parts = tuple((component, size) for component, size in sizes if component and size)
    return Stack(side, instant.bytes if instant else None, parts)


def _limit(cases: Sequence[CaseComparison]) -> float:
    """Where the axis ends: at the largest case that ran; one that did not may be predicted far beyond it."""
    ran = [instant.bytes for case in cases if case.peak.measured for instant in _instants(case)]
    return max(ran or [instant.bytes for case in cases for instant in _instants(case)]) or 1.0


def moments_chart(case: CaseComparison, key: str) -> Chart | None:
    """Stacked columns at each moment of a step, predicted left of measured, on the rank that peaks."""
    instant = case.peak.measured or case.peak.predicted
    if instant is None:
        return None
    moments = [moment for moment in Moment if case.memory(None, instant.rank, moment)]
    hover: dict[str, str] = {}
    with drawing_style():
        rows = [row for moment in moments for row in case.components_at(Instant(0, instant.rank, moment))]
        used = components_used((row.component, row.predicted or row.measured) for row in rows)
        legend = legend_height(used)
        figure, axes = canvas(310 + legend, 68, 8, 8, 92 + legend)
        for place, moment in enumerate(moments):
            _moment_columns(axes, case, Instant(0, instant.rank, moment), place, hover)
        totals = [case.memory(None, instant.rank, moment) for moment in moments]
        largest = max((size for row in totals if row for size in (row.predicted, row.measured) if size), default=1)
        axes.set_ylim(0, largest * 1.04)
        axes.set_xlim(-0.6, len(moments) - 0.4)
        byte_axis(axes, "y", largest)
        names = [moment.value.replace("_", " ") for moment in moments]
        axes.set_xticks(range(len(moments)), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.grid(axis="y")
        component_legend(figure, used)
        label = plain(case.case.label)
        svg = to_svg(figure, key, f"Memory of {label} over the moments of a step", hover)
    caption = f"Rank {instant.rank}. Left column: predicted; right column: measured. The peak: {instant_text(instant)}."
    return Chart(key, f"Over a step: {label}", caption, svg)


def _moment_columns(axes: Axes, case: CaseComparison, at: Instant, place: int, hover: dict[str, str]) -> None:
    """The predicted and the measured column of one moment."""
    rows = case.components_at(at)
    total = case.memory(None, at.rank, at.moment)
    for side, x in (("predicted", place - 0.2), ("measured", place + 0.2)):
        sizes = [(row, row.predicted if side == "predicted" else row.measured) for row in rows]
        edge = 0.0
        for row, size in sizes:
            if size and size > 0 and row.component:
                gid = f"{side}-{at.moment.value}-{row.component.value}"
                patch = axes.bar(x, size, 0.36, bottom=edge, color=COMPONENTS[row.component].light)[0]
                patch.set(edgecolor=PAPER.light, linewidth=0.6, gid=gid)
                whole = bytes_text(getattr(total, side))
                hover[gid] = f"{at.moment.value}, {side}: {row.component.value} {bytes_text(size)} of {whole}"
                edge += size


def _instants(case: CaseComparison) -> list[Instant]:
    return [instant for instant in (case.peak.predicted, case.peak.measured) if instant]
