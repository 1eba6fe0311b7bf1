"""Scaling curves: tokens/s over GPUs with the ideal line, and the efficiency; or over a size of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from reports.palette import COMPONENTS, INK, LINES, MUTED
from reports.scaling import Curve, Point, Scaling, Sweep
from reports.svg import SMALL, Chart, canvas, drawing_style, to_svg
from reports.text import plain
from suite.record import Component
from suite.units import NOT_KNOWN, count_text, percent_text, short_count_text

_LOOK: dict[Scaling, dict[str, Any]] = {
    Scaling.STRONG: {"color": COMPONENTS[Component.PARAMETERS].light, "marker": "o"},
    Scaling.WEAK: {"color": LINES[1].light, "marker": "s", "dashes": (5, 2)},
    Scaling.SIZE: {"color": COMPONENTS[Component.PARAMETERS].light, "marker": "o"},
}
_CAPTIONS = {
    Scaling.STRONG: "strong scaling keeps the global batch",
    Scaling.WEAK: "weak scaling keeps each GPU's",
}


def scaling_charts(sweep: Sweep) -> tuple[Chart, ...]:
    """Tokens/s over the axis, and efficiency (of a size: MFU)."""
    label, axis = plain(sweep.case.label), sweep.axis.name.replace("_", " ")
    rates = _drawn(sweep, "rates", f"Tokens a second of {label} over {axis}", _rate, is_rate=True)
    if sweep.grows:
        said = "; ".join(_CAPTIONS[curve.scaling] for curve in sweep.curves if curve.run)
        caption = f"Added GPUs go to {sweep.grows}: {said}. Thin: as if every GPU did what it does at the first point."
        shares = _drawn(sweep, "efficiency", f"Scaling efficiency of {label}", Curve.efficiency, is_rate=False)
        return (
            Chart("scaling-rates", "Tokens a second", caption, rates),
            Chart("scaling-efficiency", "Efficiency", "Tokens/s over the ideal line's.", shares),
        )
    shares = _drawn(sweep, "mfu", f"MFU of {label} over {axis}", _mfu, is_rate=False)
    return (
        Chart("scaling-rates", "Tokens a second", f"Over {axis}, GPUs unchanged.", rates),
        Chart("scaling-mfu", "MFU", "FLOPs of a causal model over the datasheet's peak.", shares),
    )


def _rate(curve: Curve, point: Point) -> float | None:
    return point.simulation.tokens_per_second if point.simulation else None


def _mfu(curve: Curve, point: Point) -> float | None:
    return point.simulation.causal.mfu if point.simulation else None


def _drawn(sweep: Sweep, key: str, title: str, value: Callable[[Curve, Point], float | None], is_rate: bool) -> str:
    hover: dict[str, str] = {}
    with drawing_style():
        figure, axes = canvas(270, 64, 14, 34, 46)
        for curve in sweep.curves:
            found = [(point, y) for point in curve.run if (y := value(curve, point)) is not None]
            if is_rate and curve.reference and sweep.grows:
                ideal = [curve.ideal(point) or 0.0 for point, _ in found]
                axes.plot([point.value for point, _ in found], ideal, color=MUTED.light, linewidth=1)
            for place, (point, y) in enumerate(found):
                name = f"{curve.scaling}{place}"
                axes.plot([point.value], [y], gid=name, linestyle="", **_marker(curve))
                hover[name] = _text(sweep, curve, point)
            if found:
                xs, ys = [point.value for point, _ in found], [y for _, y in found]
                axes.plot(xs, ys, label=f"{curve.scaling} scaling", linewidth=1.8, **_line(curve))
        _axes(axes, sweep, is_rate)
        if sweep.grows:
            above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
            axes.legend(ncols=2, handlelength=2.4, columnspacing=1.2, **above)
        return to_svg(figure, f"scaling-{key}", title, hover)


def _line(curve: Curve) -> dict[str, Any]:
    return {key: value for key, value in _LOOK[curve.scaling].items() if key != "marker"}


def _marker(curve: Curve) -> dict[str, Any]:
    look = _LOOK[curve.scaling]
    return {"color": look["color"], "marker": look["marker"], "markersize": 6.5}


def _axes(axes: Axes, sweep: Sweep, is_rate: bool) -> None:
    values = [point.value for curve in sweep.curves for point in curve.run]
    axes.set_xscale("log", base=2)
    if is_rate:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count_text(value)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, None)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent_text(value, 0)))
    ticks = sorted(set(values))
    axes.xaxis.set_major_locator(FixedLocator(ticks[:: 1 + (len(ticks) - 1) // 6]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))
    axes.set_xlabel("GPUs" if sweep.grows else sweep.axis.name.replace("_", " "))
    if not sweep.grows:
        axes.set_title("tokens/s" if is_rate else "MFU", size=SMALL, color=INK.light, loc="left")
    axes.grid(axis="y")


def _text(sweep: Sweep, curve: Curve, point: Point) -> str:
    """What a point says: '64 GPUs, strong scaling: 512,000 tokens/s, 91.3 % of the ideal, MFU 38.1 %'."""
    assert point.simulation
    share = curve.efficiency(point)
    name = "GPUs" if sweep.grows else sweep.axis.name.replace("_", " ")
    ideal = f", {percent_text(share, 1)} of the ideal" if share is not None else ""
    how = f", {curve.scaling} scaling" if sweep.grows else ""
    mfu = percent_text(point.simulation.causal.mfu, 1) if point.simulation.causal.mfu else NOT_KNOWN
    return f"{point.value} {name}{how}: {count_text(point.simulation.tokens_per_second)} tokens/s{ideal}, MFU {mfu}"
