"""A plan as one self-contained page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reports.page_blocks import Block, Code, Figures, Fold, Headline, Notes, Section, Tile, render_document
from reports.page_table import Cell, Column, Kind, Table, Tone, number, words
from reports.plan.asked import Objective
from reports.plan.figures import plan_charts
from reports.plan.fronts import Fronts
from reports.plan.solve import Answer, Plan
from reports.plan.text import binding_text, headline, micro_batch_text, sentences
from suite.units import bytes_text, count_text, energy_text, number_text, percent_text, seconds_text


def render_plan(plan: Plan, fronts: Fronts | None = None, handed: Sequence[tuple[str, str]] = ()) -> str:
    """The page as HTML; `handed`: names and texts of what the best layout was handed over as."""
    best = plan.answers[0]
    estimate = best.simulation.estimate
    tiles = (
        Tile("Best layout", str(best.case.layout), f"micro-batch {micro_batch_text(best)}", Tone.GOOD),
        Tile("Step", seconds_text(best.seconds), f"{count_text(estimate.tokens_per_second)} tokens/s, simulated"),
        Tile("MFU", percent_text(estimate.mfu, 1), f"largest beside compute: {binding_text(best)}"),
        Tile(
            "Peak of the fullest rank", bytes_text(best.peak_bytes),
            f"{percent_text(best.memory_share, 0)} of what it may use: {best.assessment.verdict.value}",
        ),
    )  # fmt: skip
    blocks: list[Block] = [Headline(tiles), _table("layouts", "Best layouts first", plan.answers, plan)]
    sections = [Section("What to launch", tuple(blocks)), Section("Figures", (Figures(plan_charts(plan, fronts)),))]
    if fronts is not None:
        tables = (
            _table("memory", "Less memory, more time", fronts.memory, plan),
            _table("gpus", "Fewer GPUs, more time", fronts.gpus, plan),
        )
        sections.append(Section("Fronts", tables))
    if handed:
        sections.append(Section("Handed over", tuple(Fold(name, (Code(text),)) for name, text in handed)))
    left_out = Section("What was left out, and what the times rest on", (Notes(tuple(sentences(plan))),), "left-out")
    return render_document(f"Plan: {headline(plan)}", [*sections, left_out])


def _table(key: str, caption: str, answers: Sequence[Answer], plan: Plan) -> Table:
    numbers = ["GPUs", "step", "tokens/s", "MFU", "peak", "of a rank"]
    more = {Objective.TIME: [], Objective.COST: ["GPU-seconds"], Objective.ENERGY: ["energy"]}[plan.asked.objective]
    columns = [Column("layout"), Column("micro-batch"), *(Column(name, Kind.NUMBER) for name in [*numbers, *more])]
    rows = tuple(_cells(answer, plan) for answer in answers)
    return Table(key, caption, (*columns, Column("verdict"), Column("binding")), rows, example="tp8 step<10s")


def _cells(answer: Answer, plan: Plan) -> tuple[Cell, ...]:
    estimate = answer.simulation.estimate
    texts: dict[Objective, Callable[[float | None], str]] = {
        Objective.COST: number_text,
        Objective.ENERGY: energy_text,
    }
    text = texts.get(plan.asked.objective)
    return (
        words(answer.case.layout), words(micro_batch_text(answer)), number(answer.asked.gpus, count_text),
        number(answer.seconds, seconds_text), number(estimate.tokens_per_second, count_text),
        number(estimate.mfu, lambda value: percent_text(value, 1)), number(answer.peak_bytes, bytes_text),
        number(answer.memory_share, lambda value: percent_text(value, 0)),
        *([number(answer.weight, text)] if text else []),
        words(answer.assessment.verdict.value), words(binding_text(answer)),
    )  # fmt: skip
