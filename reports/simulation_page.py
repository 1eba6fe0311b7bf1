"""One self-contained page for a simulated step: headline, parts, picture, what more would buy, terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallelism.simulator.sensitivity import Sensitivity
from parallelism.simulator.simulation import Simulation
from reports import simulation_text
from reports.figure_pipeline import PipelinePicture, swatches
from reports.figure_scaling import scaling_charts
from reports.long_run_text import long_run_lines
from reports.page import render
from reports.palette import PARTS, Colour
from reports.scaling import Sweep
from reports.scaling_text import sweep_rows
from reports.svg import Chart


@dataclass(frozen=True)
class PartBar:
    """A part of the step as the page's bar shows it."""

    name: str
    colour: Colour
    seconds: float
    share: float
    meaning: str


def part_bars(simulation: Simulation) -> list[PartBar]:
    """The parts that take time, in their order."""
    return [
        PartBar(
            simulation_text.part_name(part),
            PARTS[part],
            seconds,
            seconds / simulation.step_seconds,
            simulation_text.MEANING[part],
        )
        for part, seconds in simulation.parts.items()
        if seconds
    ]


def render_simulation(
    simulation: Simulation,
    found: Sequence[Sensitivity],
    sweep: Sweep | None = None,
    run: Mapping[str, Any] | None = None,
) -> str:
    """The page as HTML; `run` is what `long_run_mapping` says of the long run."""
    picture = PipelinePicture(simulation)
    return render(
        "simulation.html.j2",
        simulation=simulation,
        case=simulation.case,
        bars=part_bars(simulation),
        picture=picture,
        legend=swatches(picture.legend),
        sensitivities=found,
        largest=max((abs(each.gain) for each in found), default=0.0),
        terms=simulation_text.term_rows(simulation),
        text=simulation_text,
        sweep=sweep,
        points=sweep_rows(sweep) if sweep else [],
        charts=scaling_charts(sweep) if sweep else (),
        long_run=long_run_lines(run),
        goodput=_goodput(run),
    )


def _goodput(run: Mapping[str, Any] | None) -> Chart | None:
    """Goodput over checkpoint intervals, where something fails."""
    failures = None if run is None else run.get("failures")
    if run is None or failures is None:
        return None
    from reports.figure_goodput import goodput_chart

    spread = failures["goodput_over_seeds"]
    if spread is None:
        return None
    return goodput_chart(failures, run["run"]["wall_seconds"] * failures["goodput"], spread["seeds"], "goodput")
