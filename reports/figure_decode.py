"""The time from token to token in figures: over what the cache keeps where that differs, else case by case."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from reports.palette import BAD, COMPONENTS, GRID, INK, LINES, MUTED
from reports.serving_rows import ServingComparison
from reports.svg import SMALL, Chart, canvas, drawing_style, to_svg
from reports.text import plain, shorten
from suite.case import Case
from suite.record import Component
from suite.units import count_text, seconds_text

_ROW = 42
_LABEL_LIMIT = 50
_LEGEND_LINE = 18
_LEGEND_LABEL = 46
_MARKERS = "osD^vP*X"
_BAR = COMPONENTS[Component.PARAMETERS]


def decode_charts(model: str, found: Sequence[ServingComparison], key: str) -> list[Chart]:
    """Charts of a model's served cases, each with a measured time: a line a kind of cache that was met at several
    sizes, a bar a case of the others."""
    kinds: dict[str, list[ServingComparison]] = {}
    for each in found:
        kinds.setdefault(_kind(each.case), []).append(each)
    lines = {name: group for name, group in kinds.items() if len({_kept(each) for each in group}) > 1}
    rest = [each for each in found if _kind(each.case) not in lines]
    drawn = [_line_chart(model, lines, key)] if lines else []
    return [*drawn, _bar_chart(model, rest, f"{key}-bars")] if rest else drawn


def _line_chart(model: str, kinds: dict[str, list[ServingComparison]], key: str) -> Chart:
    """Seconds over the tokens that the cache keeps, measured and predicted."""
    hover: dict[str, str] = {}
    with drawing_style():
        legend = (len(kinds) + 1) * _LEGEND_LINE + 8
        figure, axes = canvas(270 + legend, 62, 12, 10, 46 + legend)
        handles = [_draw_kind(axes, place, name, found, hover) for place, (name, found) in enumerate(kinds.items())]
        hollow = {"color": MUTED.light, "dashes": (4, 3), "marker": "o", "markerfacecolor": "none"}
        handles.append(Line2D([], [], label="predicted", **hollow))  # type: ignore[arg-type]
        _time_axes(axes, [found for group in kinds.values() for found in group])
        figure.legend(handles=handles, loc="lower center", ncols=1, handlelength=3.0, borderaxespad=0.2)
        svg = to_svg(figure, key, f"Time from token to token of {plain(model)} over what is kept", hover)
    caption = (
        "Full line: median of what was measured. Dashed: predicted, where this machine's rates are known. Longer texts"
        " and more of them both make a step read more."
    )
    return Chart(key, f"Time from token to token: {plain(model)}", caption, svg)


def _bar_chart(model: str, found: Sequence[ServingComparison], key: str) -> Chart:
    """A bar a case, the prediction as a tick."""
    hover: dict[str, str] = {}
    ends = [max(each.decode.median or 0.0, each.decode.predicted or 0.0) for each in found]
    with drawing_style():
        figure, axes = canvas(len(found) * _ROW + 48, 10, 90, 6, 42)
        axes.set_xlim(0, max(ends))
        axes.set_ylim(len(found) * _ROW, 0)
        for place, (each, end) in enumerate(zip(found, ends, strict=True)):
            y, label = place * _ROW + 30, shorten(plain(short_label(each.case)), _LABEL_LIMIT)
            axes.axhline(y, color=GRID.light, linewidth=0.8, zorder=0.5)
            axes.annotate(label, (0, y - 12), (0, 0), textcoords="offset points", size=SMALL)
            opacity = 0.55 if each.decode.is_noisy else 1.0
            bar = axes.barh(y, each.decode.median or 0.0, 14, color=_BAR.light, alpha=opacity)[0]
            bar.set_gid(f"bar{place}")
            if each.decode.predicted:
                axes.plot([each.decode.predicted] * 2, [y - 10, y + 10], color=BAD.light, linewidth=2.2)
            note = seconds_text(each.decode.median) + (" noisy" if each.decode.is_noisy else "")
            style = {"va": "center", "size": SMALL, "color": INK.light, "annotation_clip": False}
            axes.annotate(note, (end, y), (6, 0), textcoords="offset points", **style)  # type: ignore[arg-type]
            hover[f"bar{place}"] = _told(each)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds_text(value) if value else "0"))
        axes.set_xlabel("from one token to the next of all sequences")
        svg = to_svg(figure, key, f"Time from token to token of {plain(model)}, case by case", hover)
    caption = "Bar: median of what was measured, pale where it scattered. Red tick: predicted."
    return Chart(key, f"Token to token, case by case: {plain(model)}", caption, svg)


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
        hover[gid] = _told(each)
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


def _told(found: ServingComparison) -> str:
    """What is shown over a point."""
    measured = found.decode.measured
    spread = f" (IQR {seconds_text(measured.iqr)})" if measured else ""
    return (
        f"{short_label(found.case)}: {seconds_text(found.decode.median)} measured{spread},"
        f" {seconds_text(found.decode.predicted)} predicted"
    )


def short_label(case: Case) -> str:
    """A label without the model, which the chart's title names."""
    return case.label.removeprefix(case.model.name).strip()
