"""The change of every case as a point with its interval: what lies clear of the band is a change."""

from __future__ import annotations

import math

from reports.judge import Verdict
from reports.measures import Kind, Measure
from reports.palette import BAD, BAND, GOOD, INK, MUTED, Colour
from reports.regress.pair import PairComparison, Row
from reports.regress.text import change_text, interval_text
from reports.svg import SMALL, Chart, canvas, drawing_style, to_svg
from reports.text import plain, shorten
from suite.units import percent_text

#: rows of a figure: those with the largest changes
DRAWN_ROWS = 24
_ROW, _LABEL = 22, 24  # units of a row; characters of a label
#: a change beyond this is drawn at it: one case must not press all others flat
_FURTHEST = 2.0
_COLOURS: dict[Verdict, Colour] = {
    Verdict.WORSE: BAD,
    Verdict.IMPROVED: GOOD,
    Verdict.NOISY: MUTED,
    Verdict.SAME: INK,
}


def change_charts(found: PairComparison) -> tuple[Chart, ...]:
    """A figure for every timed quantity that has rows; of tokens/s none, which step times say already."""
    charts = []
    for measure in found.measures:
        rows = [row for row in found.worst_first if row.judgement.measure is measure]
        if rows and measure.kind is Kind.TIMED and not measure.is_share and measure.name != "tokens_per_second":
            charts.append(_chart(measure, rows[:DRAWN_ROWS], found.limits.least))
    return tuple(charts)


def _chart(measure: Measure, rows: list[Row], least: float) -> Chart:
    hover: dict[str, str] = {}
    with drawing_style():
        figure, axes = canvas(_ROW * len(rows) + 48, 176, 12, 6, 42)
        axes.axvspan(-least, least, color=BAND.light, linewidth=0)
        axes.axvline(0, color=MUTED.light, linewidth=1)
        for place, row in enumerate(rows):
            judged, name = row.judgement, f"row{place}"
            colour = _COLOURS[judged.verdict].light
            if judged.interval:
                ends = [_drawn(judged.interval.low), _drawn(judged.interval.high)]
                axes.plot(ends, [place, place], color=colour, linewidth=2.2)
            axes.plot([_drawn(judged.change)], [place], marker="o", markersize=7, color=colour, gid=name, linestyle="")
            hover[name] = _text(row)
        axes.set_yticks(range(len(rows)), [shorten(plain(row.case.label), _LABEL) for row in rows], size=SMALL)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.xaxis.set_major_formatter(lambda value, _: percent_text(value, 0, signed=True))
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel(f"change of {measure.title}")
        axes.grid(axis="x")
        svg = to_svg(figure, f"change-{measure.name}", f"Change of {measure.title} by case", hover)
    caption = f"B over A, with what the test leaves. Shaded: below {percent_text(least)}, which counts as the same."
    return Chart(f"change-{measure.name}", f"Change of {measure.title}", caption, svg)


def _drawn(change: float) -> float:
    return max(-_FURTHEST, min(_FURTHEST, change)) if math.isfinite(change) else _FURTHEST


def _text(row: Row) -> str:
    """What a point says."""
    found = row.judgement
    text = found.measure.text
    between = f" ({interval_text(found)})" if found.interval else ""
    said = f"{row.case.label}: {text(found.before)}, then {text(found.after)}, {change_text(found)}{between}"
    return plain(f"{said}: {found.verdict.value}, {found.why}")
