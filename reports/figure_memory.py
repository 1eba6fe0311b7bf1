"""Memory by component, predicted beside measured: at the peak of every case, and over the moments of one step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MultipleLocator

from reports.compare import CaseComparison, Comparison, Instant
from reports.palette import COMPONENTS, INK, MUTED, PAPER
from reports.summary import RunComparison
from reports.svg import SMALL, WIDTH, Chart, canvas, drawing_style, to_svg
from reports.text import plain, shorten
from reports.wording import instant_text
from suite.record import Component, Moment
from suite.units import GIB, KIB, MIB, TIB, bytes_text, percent_text

LABEL_LIMIT = 50
_ROW = 58  # units a case takes: a line of text and two bars
_BAR = 15
_TAGS, _VALUES = 72, 92  # margins: 'predicted' left of a bar, its bytes right of it
_LEGEND_COLUMNS = 3
_LEGEND_LINE = 18


def peak_charts(comparison: RunComparison) -> list[Chart]:
    """Stacked bars of every case's peak, the predicted one above the measured one; a chart a model.

    Cases of one model share a scale, so that what a layout saves can be seen; models of other sizes would hide it.
    """
    models: dict[str, list[CaseComparison]] = {}
    for case in comparison.opened:
        if _instants(case):
            models.setdefault(case.case.model.name, []).append(case)
    return [_peak_chart(name, cases, f"peak-{place}") for place, (name, cases) in enumerate(models.items())]


def _peak_chart(model: str, cases: Sequence[CaseComparison], key: str) -> Chart:
    hover: dict[str, str] = {}
    with drawing_style():
        used = _used(row for case in cases for instant in _instants(case) for row in case.components_at(instant))
        legend = legend_height(used)
        figure, axes = canvas(len(cases) * _ROW + 44 + legend, _TAGS, _VALUES, 4, 40 + legend)
        limit = _limit(cases)
        axes.set_xlim(0, limit)
        axes.set_ylim(len(cases) * _ROW, 0)
        for place, case in enumerate(cases):
            _peak_rows(axes, case, place * _ROW, f"case{place}", hover)
        byte_axis(axes, "x", limit)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        component_legend(figure, used)
        svg = to_svg(figure, key, f"Predicted and measured peak memory of {plain(model)}, by component", hover)
    caption = (
        "The fullest rank at its fullest moment, predicted and measured each at their own; right of the name, the error"
        " of the prediction. A bar that ends in an arrow goes on."
    )
    return Chart(key, f"Peak memory by component: {plain(model)}", caption, svg)


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
        used = _used(rows)
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


def _peak_rows(axes: Axes, case: CaseComparison, top: float, name: str, hover: dict[str, str]) -> None:
    """A case's label, its error, and its two bars."""
    axes_width = axes.get_position().width * WIDTH
    axes.annotate(
        shorten(plain(case.case.label), LABEL_LIMIT - 8), (0, top + 14), (-_TAGS + 4, 0), textcoords="offset points"
    )
    note = percent_text(case.peak.error, signed=True) if case.is_ok else case.status
    at_right = (axes_width + _VALUES - 4, 0)
    axes.annotate(note, (0, top + 14), at_right, textcoords="offset points", ha="right", color=MUTED.light)
    bars = (("predicted", case.peak.predicted, top + 20), ("measured", case.peak.measured, top + 36))
    for side, instant, y in bars:
        middle = y + _BAR / 2
        style = {"fontsize": SMALL, "color": MUTED.light, "va": "center", "textcoords": "offset points"}
        axes.annotate(side, (0, middle), (-6, 0), ha="right", **style)  # type: ignore[arg-type]
        rows = case.components_at(instant) if instant else ()
        edge = 0.0
        for row in rows:
            size = row.predicted if side == "predicted" else row.measured
            if size and size > 0 and row.component:
                gid = f"{name}-{side}-{row.component.value}"
                patch = axes.barh(middle, size, _BAR - 2, left=edge, color=COMPONENTS[row.component].light)[0]
                patch.set(edgecolor=PAPER.light, linewidth=0.6, gid=gid)
                hover[gid] = f"{side} {row.component.value}: {bytes_text(size)}"
                edge += size
        limit = axes.get_xlim()[1]
        end = min(instant.bytes if instant else 0, limit)
        text = bytes_text(instant.bytes if instant else None) + (" →" if edge > limit else "")
        axes.annotate(text, (end, middle), (5, 0), **{**style, "color": INK.light})  # type: ignore[arg-type]


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


def _used(rows: Iterable[Comparison]) -> list[Component]:
    """The components that have any bytes to show, in their fixed order."""
    seen = {row.component for row in rows if row.predicted or row.measured}
    return [component for component in Component if component in seen]


def legend_height(used: Sequence[Component]) -> int:
    return -(-len(used) // _LEGEND_COLUMNS) * _LEGEND_LINE


def component_legend(figure: Figure, used: Sequence[Component]) -> None:
    handles = [Patch(facecolor=COMPONENTS[component].light, label=component.value) for component in used]
    style = {"ncols": _LEGEND_COLUMNS, "handlelength": 1.0, "columnspacing": 1.2, "borderaxespad": 0.2}
    figure.legend(handles=handles, loc="lower center", **style)


def byte_axis(axes: Axes, which: str, largest: float) -> None:
    """Ticks at round numbers of the binary unit that `largest` is written in."""
    unit = next((size for size in (TIB, GIB, MIB, KIB) if largest >= size), 1)
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
    step = next((step for step in steps if largest / unit / step <= 5), largest / unit / 5)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MultipleLocator(step * unit))
    axis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value, 1 if step < 1 else 0)))
