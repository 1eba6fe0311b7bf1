"""A plan drawn: where each layout's step goes, and time against memory with the front."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from parallelism.simulator.plan import Part
from reports.figure_stacks import byte_axis
from reports.palette import COMPONENTS, INK, MUTED, PARTS
from reports.plan.fronts import Fronts, unbeaten
from reports.plan.solve import Answer, Plan
from reports.plan.text import micro_batch_text
from reports.simulation_text import part_name
from reports.svg import SMALL, Chart, canvas, drawing_style, to_svg
from reports.text import plain, shorten
from suite.record import Component
from suite.units import bytes_text, percent_text, seconds_text

#: parts that are less of every step are not drawn
LEAST_SHARE = 0.003
_ROW, _BAR, _LABEL = 40, 15, 46


def plan_charts(plan: Plan, fronts: Fronts | None) -> tuple[Chart, ...]:
    """Both figures."""
    return _parts(plan.answers), _trade(plan.answers, fronts)


def _parts(answers: Sequence[Answer]) -> Chart:
    """A bar a layout, the parts of its step in the order of the palette."""
    used = [
        part
        for part in Part
        if any(answer.simulation.parts.get(part, 0.0) > LEAST_SHARE * answer.seconds for answer in answers)
    ]
    hover: dict[str, str] = {}
    lines = -(-len(used) // 2)
    with drawing_style():
        figure, axes = canvas(len(answers) * _ROW + 44 + 18 * lines, 24, 92, 4, 40 + 18 * lines)
        axes.set_xlim(0, 1.02 * max(answer.seconds for answer in answers))
        axes.set_ylim(len(answers) * _ROW, 0)
        for place, answer in enumerate(answers):
            top, left = place * _ROW, 0.0
            label = shorten(plain(f"{answer.case.layout}, {micro_batch_text(answer)}"), _LABEL)
            axes.text(0, top + 12, label, size=SMALL, color=INK.light, va="center")
            for part in used:
                seconds = answer.simulation.parts.get(part, 0.0)
                name = f"part{place}-{part.value}"
                axes.barh(top + 27, seconds, _BAR, left, color=PARTS[part].light, gid=name)
                share = percent_text(seconds / answer.seconds, 1)
                hover[name] = plain(f"{answer.case.layout}: {part_name(part)} {seconds_text(seconds)}, {share}")
                left += seconds
            axes.text(left, top + 27, f"  {seconds_text(answer.seconds)}", size=SMALL, color=INK.light, va="center")
            axes.text(0, top + 27, f"{place + 1} ", size=SMALL, color=MUTED.light, va="center", ha="right")
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == 0 else seconds_text(value)))
        axes.set_yticks([])
        handles = [Patch(color=PARTS[part].light, label=part_name(part)) for part in used]
        figure.legend(handles=handles, loc="lower left", ncols=2, frameon=False, fontsize=SMALL)
        svg = to_svg(figure, "plan-parts", "Step time of each layout, by part", hover)
    caption = "On the rank that computes longest; parts under 0.3 % are left out."
    return Chart("plan-parts", "Where each step goes", caption, svg)


def _trade(answers: Sequence[Answer], fronts: Fronts | None) -> Chart:
    """A dot a layout at its step time and its fullest rank's peak; what nothing beats is joined."""
    points = [*answers, *(fronts.memory if fronts else ())]
    front = unbeaten(points, lambda answer: float(answer.peak_bytes))
    hover: dict[str, str] = {}
    with drawing_style():
        figure, axes = canvas(300, 84, 18, 12, 46)
        colour = COMPONENTS[Component.PARAMETERS].light
        axes.plot([each.seconds for each in front], [each.peak_bytes for each in front], color=colour, linewidth=1.2)
        for place, answer in enumerate(points):
            name, is_on = f"point{place}", answer in front
            axes.plot(
                [answer.seconds], [answer.peak_bytes], "o" if is_on else "D", markersize=7, gid=name,
                color=colour if is_on else MUTED.light,
            )  # fmt: skip
            hover[name] = plain(
                f"{answer.case.layout}, micro-batch {micro_batch_text(answer)}: {seconds_text(answer.seconds)},"
                f" {bytes_text(answer.peak_bytes)}"
            )
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds_text(value)))
        byte_axis(axes, "y", max(each.peak_bytes for each in points))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("time of a step")
        axes.set_ylabel("peak of the fullest rank")
        axes.grid()
        svg = to_svg(figure, "plan-trade", "Step time against peak memory", hover)
    of = "the layouts shown, and the best within 80, 60, 40 and 20 % of the memory" if fronts else "the layouts shown"
    caption = f"Dots that are joined: of {of}, those that none beats on both sides."
    return Chart("plan-trade", "Time against memory", caption, svg)
