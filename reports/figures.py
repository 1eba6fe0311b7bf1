"""The figures of a run as SVG: peaks, errors, a step's moments, losses, throughput. Drawn without pyplot."""

from __future__ import annotations

from matplotlib.ticker import FuncFormatter, MaxNLocator

from reports.compare import CaseComparison
from reports.figure_balance import balance_chart
from reports.figure_components import component_chart
from reports.figure_losses import loss_chart
from reports.figure_memory import moments_chart, peak_charts
from reports.figure_serving import serving_charts
from reports.figure_stacks import LABEL_LIMIT
from reports.figure_timeline import timeline_chart
from reports.palette import BAD, BAND, COMPONENTS, GRID, INK, MUTED
from reports.summary import ERROR_BAND, RunComparison
from reports.svg import SMALL, Chart, canvas, drawing_style, to_svg
from reports.text import plain, shorten
from suite.record import Component
from suite.units import count_text, percent_text

#: Cases whose step is drawn moment by moment.
CHOSEN = 4
_ROW = 42
_BLUE = COMPONENTS[Component.PARAMETERS]


def charts(comparison: RunComparison) -> tuple[Chart, ...]:
    """Every figure that the run has numbers for, in the order of the page."""
    steps = [chart for place, case in enumerate(chosen(comparison)) for chart in _step_charts(case, place)]
    losses = [loss_chart(group, f"loss-{place}") for place, group in enumerate(comparison.loss_groups)]
    errors = [error_chart(comparison), component_chart(comparison.by_component)]
    served, last = serving_charts(comparison), throughput_chart(comparison)
    balance = [balance_chart(case, f"balance-{place}") for place, case in enumerate(chosen(comparison))]
    found = [*served, *peak_charts(comparison), *errors, *steps, *losses, *balance, last]
    return tuple(chart for chart in found if chart)


def _step_charts(case: CaseComparison, place: int) -> list[Chart | None]:
    """A case's step on its fullest rank: the timeline, and for the first case (or where there is none) the moments."""
    instant = case.peak.measured or case.peak.predicted
    lines = [line for line in case.result.timelines if instant and line.rank == instant.rank]
    drawn = [timeline_chart(case, line, (line.rank,), f"timeline-{place}") for line in lines]
    return [*drawn, moments_chart(case, f"moments-{place}")] if not (lines and place) else [*drawn]


def chosen(comparison: RunComparison) -> list[CaseComparison]:
    """The case that is furthest off, then the first of each layout, up to CHOSEN."""
    worst = comparison.worst_peak
    picked = [worst] if worst else []
    for case in comparison.finished:
        if len(picked) < CHOSEN and str(case.case.layout) not in {str(other.case.layout) for other in picked}:
            picked.append(case)
    return picked


def error_chart(comparison: RunComparison) -> Chart | None:
    """A dot a case at the error of its predicted peak, over the promised band."""
    rows = [(case, case.peak.error) for case in comparison.opened if case.peak.error is not None]
    if not rows:
        return None
    limit = 1.4 * max(ERROR_BAND, *(abs(error or 0.0) for _, error in rows))
    hover: dict[str, str] = {}
    with drawing_style():
        figure, axes = canvas(len(rows) * _ROW + 48, 10, 10, 6, 42)
        axes.axvspan(-ERROR_BAND, ERROR_BAND, color=BAND.light, linewidth=0)
        axes.axvline(0, color=MUTED.light, linewidth=1)
        for place, (case, error) in enumerate(rows):
            value = error or 0.0
            y, label = place * _ROW + 31, shorten(plain(case.case.label), LABEL_LIMIT)
            axes.axhline(y, color=GRID.light, linewidth=0.8, zorder=0.5)
            axes.annotate(label, (0, y - 12), (4, 0), ("axes fraction", "data"), "offset points", size=SMALL)
            inside = abs(value) <= ERROR_BAND
            colour, shape = (_BLUE.light, "o") if inside else (BAD.light, "D")
            axes.plot([value], [y], shape, color=colour, markersize=8, gid=f"dot{place}")
            side = 1 if value >= 0 else -1
            text = percent_text(value, signed=True)
            look = {"va": "center", "ha": "right" if side < 0 else "left", "size": SMALL, "color": INK.light}
            axes.annotate(text, (value, y), (9 * side, 0), textcoords="offset points", **look)  # type: ignore[arg-type]
            hover[f"dot{place}"] = f"{label}: {text}"
        axes.set_xlim(-limit, limit)
        axes.set_ylim(len(rows) * _ROW, 0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent_text(value, 1)))
        axes.set_xlabel("(predicted - measured) / measured")
        svg = to_svg(figure, "error", "Error of the predicted peak memory of every case", hover)
    caption = (
        f"Left of the line the formulas promise too little. The band is plus or minus {percent_text(ERROR_BAND, 0)}."
    )
    return Chart("error", "Error of the predicted peak", caption, svg)


def throughput_chart(comparison: RunComparison) -> Chart | None:
    """Tokens a second of every case that was timed: bar, interquartile range, and the prediction as a tick."""
    cases = [case for case in comparison.opened if case.speed.tokens_per_second]
    if not cases:
        return None
    hover: dict[str, str] = {}
    with drawing_style():
        figure, axes = canvas(len(cases) * _ROW + 48, 10, 90, 6, 42)
        largest = max(max(_ends(case)) for case in cases)
        for place, case in enumerate(cases):
            rate, y = case.speed.tokens_per_second or 0.0, place * _ROW + 30
            label = shorten(plain(case.case.label), LABEL_LIMIT)
            axes.annotate(label, (0, y - 12), (0, 0), textcoords="offset points", size=SMALL)
            bar = axes.barh(y, rate, 14, color=_BLUE.light, alpha=0.55 if case.speed.is_noisy else 1.0)[0]
            bar.set_gid(f"rate{place}")
            low, high = _quartile_rates(case)
            axes.plot([low, high], [y, y], color=INK.light, linewidth=1.6, marker="|", markersize=9)
            predicted = case.speed.predicted_tokens_per_second
            if predicted:
                axes.plot([predicted] * 2, [y - 10, y + 10], color=BAD.light, linewidth=2.2, solid_capstyle="butt")
            note = f"{count_text(rate)}{' noisy' if case.speed.is_noisy else ''}"
            look = {"va": "center", "size": SMALL, "annotation_clip": False}
            axes.annotate(note, (max(_ends(case)), y), (6, 0), textcoords="offset points", **look)  # type: ignore[arg-type]
            hover[f"rate{place}"] = f"{label}: {note} tokens/s, predicted {count_text(predicted)}"
        axes.set_xlim(0, largest)
        axes.set_ylim(len(cases) * _ROW, 0)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))
        axes.set_xlabel("tokens/s, all ranks")
        axes.grid(axis="x")
        svg = to_svg(figure, "throughput", "Throughput of every case in tokens a second", hover)
    caption = "Bar: tokens of a step over its median time. Thin line: interquartile range. Red tick: predicted."
    return Chart("throughput", "Throughput", caption, svg)


def _quartile_rates(case: CaseComparison) -> tuple[float, float]:
    """Tokens/s at the third and the first quartile of the step time; the median's where there is one step."""
    rate = case.speed.tokens_per_second or 0.0
    if case.speed.quartiles is None:
        return rate, rate
    first, third = case.speed.quartiles
    return case.speed.tokens_per_step / third, case.speed.tokens_per_step / first


def _ends(case: CaseComparison) -> tuple[float, float]:
    return case.speed.predicted_tokens_per_second or 0.0, _quartile_rates(case)[1]
