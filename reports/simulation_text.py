"""What `simulate` says of a simulation: one document for a program, sentences and tables for a person."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parallelism.simulator.plan import Cost, Part, StagePlan, Unit
from parallelism.simulator.sensitivity import Sensitivity
from parallelism.simulator.simulation import MEANING, Simulation, Utilization
from reports.answer import STYLE
from reports.text import plain, plural
from suite.units import NOT_KNOWN, count_text, number_text, percent_text, seconds_text


def simulation_mapping(simulation: Simulation) -> dict[str, Any]:
    """The `time` of `simulate --json`."""
    causal, full = simulation.causal, simulation.full_attention
    return {
        "step_seconds": simulation.step_seconds,
        "tokens_per_second": simulation.tokens_per_second,
        "tflops_per_gpu": causal.tflops_per_gpu,
        "mfu": causal.mfu,
        "hfu": causal.hfu,
        "tflops_per_gpu_full_attention": full.tflops_per_gpu,
        "mfu_full_attention": full.mfu,
        "hfu_full_attention": full.hfu,
        "parts": {part.value: seconds for part, seconds in simulation.parts.items()},
        "communication": {
            part.value: {
                "total_seconds": found.total,
                "exposed_seconds": found.exposed,
                "hidden_share": found.hidden_share,
            }
            for part, found in simulation.communication.items()
        },
        "bottleneck": _named(simulation, simulation.bottleneck),
        "overhead": _named(simulation, simulation.overhead),
        "pipeline_rank": simulation.place,
        "pipeline_ranks": len(simulation.plan.orders),
        "basis": simulation.basis,
    }


def _named(simulation: Simulation, part: Part | None) -> dict[str, Any] | None:
    if part is None:
        return None
    return {
        "part": part.value,
        "seconds": simulation.parts[part],
        "share": simulation.parts[part] / simulation.step_seconds,
        "meaning": MEANING[part],
    }


def sensitivity_mapping(found: Sensitivity) -> dict[str, Any]:
    """One of `sensitivities`."""
    return {
        "resource": found.resource,
        "change": found.change,
        "step_seconds": found.step_seconds,
        "gain": found.gain,
    }


def term_rows(simulation: Simulation) -> list[dict[str, Any]]:
    """What the step is made of: each stage's units, equal neighbours together, in seconds for one micro-batch."""
    return [row for number, stage in enumerate(simulation.plan.stages) for row in _stage_rows(number, stage)]


def _stage_rows(number: int, stage: StagePlan) -> list[dict[str, Any]]:
    rows = []
    for _, group in groupby(stage.units, key=_facts):
        units = list(group)
        first = units[0]
        name = first.name if len(units) == 1 else f"{first.name} to {units[-1].name}"
        row: dict[str, Any] = {"stage": number, "unit": name, "count": len(units)}
        passes = {"forward": first.forward, "inputs": first.inputs, "weights": first.weights, "rerun": first.rerun}
        row |= {f"{key}_seconds": cost.compute for key, cost in passes.items()}
        everything = sum(passes.values(), Cost())
        row["host_seconds"] = everything.host
        row["blocking_seconds"] = sum(seconds for _, seconds in everything.blocking)
        row |= {"gather_seconds": first.gather, "reduce_seconds": first.reduce}
        rows.append(row)
    return rows


def _facts(unit: Unit) -> tuple[object, ...]:
    """All of a unit but its name."""
    return unit.forward, unit.inputs, unit.weights, unit.rerun, unit.gather, unit.reduce, unit.is_kept


def sentences(simulation: Simulation) -> list[str]:
    """The headline, each utilisation, and what bounds the step."""
    case = simulation.case
    said = [
        f"step {seconds_text(simulation.step_seconds)}, {count_text(simulation.tokens_per_second)} tokens/s over"
        f" {plural(case.layout.world_size, 'rank')}",
        f"{_utilization(simulation.causal)}: FLOPs that a causal model needs",
        f"{_utilization(simulation.full_attention)}: attention counted in full, as PaLM does",
    ]
    return [*said, bottleneck_sentence(simulation)]


def _utilization(found: Utilization) -> str:
    return (
        f"{number_text(found.tflops_per_gpu)} model TFLOP/s a rank, MFU {percent_text(found.mfu, 1)},"
        f" HFU {percent_text(found.hfu, 1)}"
    )


def bottleneck_sentence(simulation: Simulation) -> str:
    """'Bottleneck: compute, 71.3 % of the step: ... Of the rest, bubble is largest, 20.0 %: ...'"""
    said = f"Bottleneck: {_part_words(simulation, simulation.bottleneck)}."
    overhead = simulation.overhead
    if overhead is None or overhead is simulation.bottleneck:
        return said
    return f"{said} Beside compute most goes to {_part_words(simulation, overhead)}."


def _part_words(simulation: Simulation, part: Part) -> str:
    share = percent_text(simulation.parts[part] / simulation.step_seconds, 1)
    return f"{part_name(part)}, {share} of the step: {MEANING[part]}"


def part_name(part: Part) -> str:
    """'gather communication'."""
    return part.value.replace("_", " ")


def print_simulation(simulation: Simulation, found: Sequence[Sensitivity], console: Console) -> None:
    """The whole answer for a person."""
    case = simulation.case
    _say(console, f"{case.label}  (case {case.case_id})", "bold")
    for line in sentences(simulation):
        _say(console, line)
    ranks = len(simulation.plan.orders)
    whose = f" of pipeline rank {simulation.place} of {ranks}, which computes longest" if ranks > 1 else ""
    _table(console, f"Where the step goes{whose}", ["part", "seconds", "share"], part_cells(simulation))
    if simulation.communication:
        columns = ["communication", "total", "exposed", "hidden"]
        _table(console, "On links", columns, communication_cells(simulation))
    if found:
        _table(console, "What more would buy", ["resource", "change", "tokens/s"], sensitivity_cells(found))
    _say(console, f"basis: {simulation.basis or NOT_KNOWN}")


def part_cells(simulation: Simulation) -> list[list[str]]:
    """A row a part that takes time."""
    step = simulation.step_seconds
    rows = [
        [part_name(part), seconds_text(seconds), percent_text(seconds / step, 1)]
        for part, seconds in simulation.parts.items()
        if seconds
    ]
    return [*rows, ["step", seconds_text(step), percent_text(1.0, 1)]]


def communication_cells(simulation: Simulation) -> list[list[str]]:
    """A row a kind of communication."""
    return [
        [
            part_name(part).removesuffix(" communication"),
            seconds_text(each.total),
            seconds_text(each.exposed),
            percent_text(each.hidden_share, 1),
        ]
        for part, each in simulation.communication.items()
    ]


def sensitivity_cells(found: Sequence[Sensitivity]) -> list[list[str]]:
    """A row a resource."""
    return [[each.resource, each.change, percent_text(each.gain, 2, signed=True)] for each in found]


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(Text(plain(line), style=style))


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, **STYLE)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place and column != "change" else "left")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console.print(table)
