"""A group's layouts drawn: memory by component, time by part, time against memory, loss curves over each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from reports.figure_losses import loss_chart
from reports.figure_memory import peak_chart
from reports.figure_stacks import Scale, Stack, StackRow, byte_axis, stacks_svg
from reports.palette import BAD, COMPONENTS, INK, MUTED, PARTS, Colour
from reports.side_by_side.groups import Choice, Group
from reports.side_by_side.wins import SERVED, TRAINED, Basis, Criterion, front
from reports.svg import SMALL, Chart, canvas, drawing_style, to_svg
from reports.text import plain
from reports.time_view import part_of
from suite.record import Component
from suite.units import bytes_text, percent_text, seconds_text

#: layouts that a figure draws: the fastest, or leanest; the tables have all
DRAWN = 40
#: times and bytes further apart than this are drawn on logarithmic axes
_WIDE = 8
_ON, _OFF = COMPONENTS[Component.PARAMETERS], MUTED


class Whole(StrEnum):
    """What a measured step is made of: nothing that could be told apart."""

    STEP = "measured step"


def group_charts(group: Group, key: str) -> tuple[Chart, ...]:
    """Every figure that the group has numbers for."""
    found = {
        "Peak memory by component": _memory(group, f"{key}-memory"),
        "Step time by part": _times(group, f"{key}-times"),
        "Time against memory": _trade(group, f"{key}-trade"),
        "Loss": _losses(group, f"{key}-losses"),
    }
    # the group's name is said above them all
    return tuple(replace(chart, title=title) for title, chart in found.items() if chart)


def _losses(group: Group, key: str) -> Chart | None:
    """The curves over each other."""
    losses = group.losses
    if losses is None or len(losses.cases) < 2:
        return None
    return loss_chart(losses, key, [choice.name for choice in group.learned])


def _memory(group: Group, key: str) -> Chart | None:
    """Stacked bars by component, the leanest first."""
    room = TRAINED[1]
    known = [choice for choice in group.choices if _known(room, choice) is not None]
    ordered = sorted(known, key=lambda choice: _known(room, choice) or 0.0)
    if group.serves or not known:
        return None
    return peak_chart(group.title, [(choice.name, choice.case) for choice in ordered[:DRAWN]], key)


def _known(criterion: Criterion, choice: Choice) -> float | None:
    """Measured, or where it was not, predicted."""
    measured = criterion.value(choice.case, Basis.MEASURED)
    return criterion.value(choice.case, Basis.PREDICTED) if measured is None else measured


def _times(group: Group, key: str) -> Chart | None:
    """Stacked bars of the predicted step by part above the measured step with its quartiles, the fastest first."""
    known = [choice for choice in group.choices if choice.case.speed.predicted_seconds or choice.case.speed.step]
    if group.serves or not known:
        return None
    rows = [_time_row(choice) for choice in known[:DRAWN]]
    longest = max(stack.total or 0.0 for row in rows for stack in row.stacks)
    colours: dict[Any, Colour] = {**PARTS, Whole.STEP: MUTED}
    described = f"Step time of {plain(group.title)}, by part"
    svg = stacks_svg(rows, key, described, longest * 1.02, Scale(colours, seconds_text, _seconds_axis))
    caption = (
        "Predicted: the parts of the step on the rank that is slowest. Measured: the median of the slowest rank's steps"
        " after warm-up, and its quartiles as a line. Right of the name, the error of the prediction."
    )
    return Chart(key, f"Step time by part: {plain(group.title)}", caption, svg)


def _time_row(choice: Choice) -> StackRow:
    speed = choice.case.speed
    parts = speed.predicted.parts_seconds if speed.predicted else {}
    predicted = tuple((part_of(name), seconds) for name, seconds in parts.items())
    measured = speed.measured_seconds
    whole = ((Whole.STEP, measured),) if measured else ()
    note = percent_text(speed.error, 1, signed=True) if choice.case.is_ok else choice.case.status
    return StackRow(
        choice.name,
        note + (" noisy" if speed.is_noisy else ""),
        (Stack("predicted", speed.predicted_seconds, predicted), Stack("measured", measured, whole, speed.quartiles)),
    )


def _seconds_axis(axes: Axes, which: str, _: float) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == 0 else seconds_text(value)))


# --- time against memory -----------------------------------------------------------------------------------------


def _trade(group: Group, key: str) -> Chart | None:
    """A point a layout at its measured time and bytes, a ring where it was predicted; those on the front are numbered
    and joined."""
    time, room = (SERVED[1], SERVED[2]) if group.serves else (TRAINED[0], TRAINED[1])
    basis, best = front(group)
    points = [_Point.of(choice, time, room, basis) for choice in group.choices]
    known = [point for point in points if point]
    if len(known) < 2:
        return None
    on = sorted((point for point in known if point.choice.name in best), key=lambda point: point.at)
    hover: dict[str, str] = {}
    with drawing_style():
        figure, axes = canvas(300, 84, 18, 12, 46)
        axes.plot([point.at[0] for point in on], [point.at[1] for point in on], color=_ON.light, linewidth=1.2)
        for place, point in enumerate(known):
            hover |= _draw_point(axes, point, f"point{place}", time, room, point in on)
        for number, point in enumerate(on, start=1):
            axes.annotate(str(number), point.at, (7, 6), textcoords="offset points", size=SMALL, color=INK.light)
        _axes(axes, [place for point in known for place in point.places])
        axes.set_xlabel(time.what)
        axes.set_ylabel(room.what)
        svg = to_svg(figure, key, f"Time against memory of {plain(group.title)}", hover)
    names = "; ".join(f"{number} {plain(point.choice.name)}" for number, point in enumerate(on, start=1))
    rings = " Rings: where each was predicted." if basis is Basis.MEASURED else ""
    caption = f"Dots: {basis.value}.{rings} Numbered: what no other layout is told to beat, {names}."
    return Chart(key, f"Time against memory: {plain(group.title)}", caption, svg)


@dataclass(frozen=True)
class _Point:
    """A layout's place, and where it was predicted to be."""

    choice: Choice
    at: tuple[float, float]
    predicted: tuple[float, float] | None

    @classmethod
    def of(cls, choice: Choice, time: Criterion, room: Criterion, basis: Basis) -> _Point | None:
        """None where either number is not known."""
        at = _pair(choice, time, room, basis)
        return at and cls(choice, at, _pair(choice, time, room, Basis.PREDICTED) if basis is Basis.MEASURED else None)

    @property
    def places(self) -> Sequence[tuple[float, float]]:
        """Every place that is drawn."""
        return [self.at, *([self.predicted] if self.predicted else [])]


def _pair(choice: Choice, time: Criterion, room: Criterion, basis: Basis) -> tuple[float, float] | None:
    seconds, held = time.value(choice.case, basis), room.value(choice.case, basis)
    return None if seconds is None or held is None else (seconds, held)


def _draw_point(axes: Axes, point: _Point, name: str, time: Criterion, room: Criterion, is_on: bool) -> dict[str, str]:
    """Draw it; what it says when pointed at."""
    colour = (_ON if is_on else _OFF).light
    if point.predicted:
        ends = zip(point.at, point.predicted, strict=True)
        axes.plot(*(list(each) for each in ends), color=BAD.light, linewidth=0.8, zorder=1)
        axes.plot(*([each] for each in point.predicted), "o", mfc="none", mec=BAD.light, markersize=6, zorder=1)
    axes.plot(*([each] for each in point.at), "o" if is_on else "D", color=colour, markersize=7, gid=name, zorder=2)
    basis = Basis.MEASURED if point.predicted else Basis.PREDICTED
    said = f"{point.choice.name}: {time.text(point.choice.case, basis)}, {room.text(point.choice.case, basis)}"
    if point.predicted:
        case = point.choice.case
        said += f"; predicted {time.text(case, Basis.PREDICTED)}, {room.text(case, Basis.PREDICTED)}"
    return {name: plain(said)}


def _axes(axes: Axes, places: Sequence[tuple[float, float]]) -> None:
    """Round numbers of seconds and bytes; logarithmic where they lie far apart."""
    times, sizes = ([place[side] for place in places] for side in (0, 1))
    _seconds_axis(axes, "x", max(times))
    byte_axis(axes, "y", max(sizes))
    if _is_wide(times):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds_text(value)))
    if _is_wide(sizes):
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: bytes_text(value, 0)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.grid()


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > _WIDE
