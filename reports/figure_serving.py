"""Served cases in figures: bytes of each cache by component, and the time from token to token over what is kept."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from reports.compare import CaseComparison
from reports.figure_stacks import Stack, StackRow, stacks_svg
from reports.palette import LINES, MUTED
from reports.serving_rows import ServingComparison
from reports.summary import RunComparison
from reports.svg import Chart, canvas, drawing_style, to_svg
from reports.text import plain, shorten
from suite.case import Case
from suite.record import Quantity
from suite.units import count_text, percent_text, seconds_text

_LEGEND_LINE = 18
_LEGEND_LABEL = 46
_MARKERS = "osD^vP*X"

Served = tuple[CaseComparison, ServingComparison]


def serving_charts(comparison: RunComparison) -> list[Chart]:
    """A chart of bytes and one of times for every model that was served."""
    models: dict[str, list[Served]] = {}
    for case in comparison.opened:
        if case.serving:
            models.setdefault(case.case.model.name, []).append((case, case.serving))
    found = []
    for place, (name, served) in enumerate(models.items()):
        found += [_bytes_chart(name, served, f"cache-{place}"), _time_chart(name, served, f"decode-{place}")]
    return [chart for chart in found if chart]


def _bytes_chart(model: str, cases: Sequence[Served], key: str) -> Chart | None:
    """Stored bytes of every case's fullest rank, predicted above measured."""
    known = [(case, found) for case, found in cases if found.fullest(Quantity.CACHE)]
    if not known:
        return None
    rows = [_bytes_row(case, found) for case, found in known]
    limit = max(stack.total or 0 for row in rows for stack in row.stacks) or 1.0
    svg = stacks_svg(rows, key, f"Predicted and measured bytes of the caches of {plain(model)}, by component", limit)
    caption = (
        "What the fullest rank stores when the answers are whole. Keys stand for latents where attention is latent;"
        " host: what the host keeps for the device."
    )
    return Chart(key, f"Cache by component: {plain(model)}", caption, svg)


def _bytes_row(case: CaseComparison, found: ServingComparison) -> StackRow:
    total = found.fullest(Quantity.CACHE)
    assert total
    parts = [
        row for row in found.rows if row.quantity is Quantity.CACHE and row.rank == total.rank and row.component
    ]  # fmt: skip
    predicted = tuple((row.component, row.predicted or 0.0) for row in parts if row.component)
    measured = tuple((row.component, row.measured or 0.0) for row in parts if row.component)
    note = "exact" if total.is_exact else percent_text(total.error, signed=True) if case.is_ok else case.status
    stacks = (Stack("predicted", total.predicted, predicted), Stack("measured", total.measured, measured))
    return StackRow(_short_label(case.case), note, stacks)


def _short_label(case: Case) -> str:
    """A label without the model, which the chart's title names."""
    return case.label.removeprefix(case.model.name).strip()


def _time_chart(model: str, cases: Sequence[Served], key: str) -> Chart | None:
    """Seconds from token to token over the tokens that the cache keeps: a line a kind of cache, measured and
    predicted."""
    kinds: dict[str, list[ServingComparison]] = {}
    for _, found in cases:
        if found.decode.median:
            kinds.setdefault(_kind(found.case), []).append(found)
    if not kinds:
        return None
    hover: dict[str, str] = {}
    with drawing_style():
        legend = (len(kinds) + 1) * _LEGEND_LINE + 8
        figure, axes = canvas(270 + legend, 62, 12, 10, 46 + legend)
        handles = [_draw_kind(axes, place, name, found, hover) for place, (name, found) in enumerate(kinds.items())]
        handles.append(Line2D([], [], color=MUTED.light, dashes=(4, 3), marker="o", markerfacecolor="none",
                              label="predicted"))  # fmt: skip
        _time_axes(axes, [found for group in kinds.values() for found in group])
        figure.legend(handles=handles, loc="lower center", ncols=1, handlelength=3.0, borderaxespad=0.2)
        svg = to_svg(figure, key, f"Time from token to token of {plain(model)}, measured and predicted", hover)
    caption = (
        "Full line: median of what was measured. Dashed: predicted, where this machine's rates are known. Longer texts"
        " and more of them both make a step read more."
    )
    return Chart(key, f"Time from token to token: {plain(model)}", caption, svg)


def _draw_kind(
    axes: Axes, place: int, name: str, found: Sequence[ServingComparison], hover: dict[str, str]
) -> Line2D:  # fmt: skip
    """One kind's points, in the order of what is kept; returns the legend's handle."""
    colour, shape = LINES[(place + 1) % len(LINES)].light, _MARKERS[place % len(_MARKERS)]
    ordered = sorted(found, key=_kept)
    axes.plot(list(map(_kept, ordered)), [each.decode.median or 0.0 for each in ordered], color=colour, linewidth=1.6)
    told = [each for each in ordered if each.decode.predicted]
    axes.plot(
        list(map(_kept, told)), [each.decode.predicted or 0.0 for each in told], color=colour, dashes=(4, 3),
        marker=shape, markerfacecolor="none", markersize=8, linewidth=1.2,
    )  # fmt: skip
    for number, each in enumerate(ordered):
        measured, gid = each.decode.measured, f"point{place}-{number}"
        assert measured
        (dot,) = axes.plot([_kept(each)], [measured.median], shape, color=colour, markersize=6)
        dot.set_gid(gid)
        hover[gid] = (
            f"{_short_label(each.case)}: {seconds_text(measured.median)} measured (IQR {seconds_text(measured.iqr)}),"
            f" {seconds_text(each.decode.predicted)} predicted"
        )
    return Line2D([], [], color=colour, marker=shape, label=shorten(plain(name), _LEGEND_LABEL))


def _time_axes(axes: Axes, found: Sequence[ServingComparison]) -> None:
    """Tokens by doublings, seconds from nothing."""
    kept = sorted({_kept(each) for each in found})
    axes.set_xscale("log", base=2)
    axes.set_xlim(kept[0] / 1.25, kept[-1] * 1.25)
    apart = [kept[0]]
    for tokens in kept[1:]:
        if tokens >= 1.3 * apart[-1]:
            apart.append(tokens)
    axes.set_xticks(apart, [count_text(tokens) for tokens in apart])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("tokens kept: batch x (prompt + answer)")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds_text(value) if value else "0"))
    axes.grid(axis="y")


def _kept(found: ServingComparison) -> int:
    """Tokens of all sequences when the answers are whole."""
    case = found.case
    return case.workload.micro_batch * case.serving.copies * (case.workload.seq_len + (case.serving.new_tokens or 0))


def _kind(case: Case) -> str:
    """What is the same along a line: layout, number format, sampling, cache."""
    parts = [str(case.layout), case.workload.precision.value, str(case.cache)]
    parts += [case.serving.sampling.value] if case.serving.copies > 1 else []
    return " ".join(parts)
