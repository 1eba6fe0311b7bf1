"""The error by component: how far each is off, as a share of all that the rank holds at that moment."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, MaxNLocator

from reports.component_errors import ComponentErrors
from reports.palette import COMPONENTS, GRID, INK, MUTED
from reports.svg import SMALL, WIDTH, Chart, canvas, drawing_style, to_svg
from suite.units import bytes_text, percent_text

_ROW = 30
_NAMES, _VALUES = 104, 74  # margins: component left, its worst right


def component_chart(rows: Sequence[ComponentErrors]) -> Chart | None:
    """A bar a component, from nothing to its worst share; a tick at the mean of the signed shares."""
    if not rows:
        return None
    hover: dict[str, str] = {}
    limit = 1.15 * max(1e-6, *(abs(row.worst_share) for row in rows))
    with drawing_style():
        figure, axes = canvas(len(rows) * _ROW + 50, _NAMES, _VALUES, 6, 44)
        axes.set_xlim(-limit, limit)
        axes.set_ylim(len(rows) * _ROW, 0)
        axes.axvline(0, color=MUTED.light, linewidth=1)
        for place, row in enumerate(rows):
            y, name = (place + 0.5) * _ROW, f"component{place}"
            axes.axhline(y, color=GRID.light, linewidth=0.8, zorder=0.5)
            bar = axes.barh(y, row.worst_share, 14, color=COMPONENTS[row.component].light)[0]
            bar.set_gid(name)
            axes.plot([row.bias_share] * 2, [y - 9, y + 9], color=INK.light, linewidth=1.6)
            style = {"va": "center", "size": SMALL, "textcoords": "offset points", "annotation_clip": False}
            axes.annotate(row.component.value, (-limit, y), (-8, 0), ha="right", **style)  # type: ignore[arg-type]
            note = "exact" if row.exact == row.count else percent_text(row.worst_share, 3, signed=True)
            right = (WIDTH - _NAMES - 4, 0)
            axes.annotate(note, (-limit, y), right, ha="right", **style)  # type: ignore[arg-type]
            hover[name] = (
                f"{row.component.value}: worst {note} ({bytes_text(row.worst_bytes)}, {row.worst_case}),"
                f" {row.exact} of {row.count} equal to the byte"
            )
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(3, symmetric=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent_text(value, 3)))
        axes.set_xlabel("(predicted - measured) / all that is held")
        svg = to_svg(figure, "components", "Error of every component of memory", hover)
    caption = (
        "Over all ranks and moments: a bar goes as far as the worst row, the tick stands at the mean with its sign."
    )
    return Chart("components", "Error by component", caption, svg)
