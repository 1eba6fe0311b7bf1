"""A plan for a person: the question, the best layouts, what binds each, and what was left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reports.answer import STYLE
from reports.markdown import escape
from reports.plan.asked import Objective
from reports.plan.fronts import Fronts
from reports.plan.solve import Answer, Plan
from reports.simulation_text import part_name
from reports.text import plain, plural
from suite.units import bytes_text, count_text, energy_text, number_text, percent_text, seconds_text

COLUMNS = ("", "layout", "micro-batch", "step", "tokens/s", "MFU", "peak", "of a rank", "verdict", "binding")
FRONT_COLUMNS = ("GPUs", "layout", "micro-batch", "step", "peak", "of a rank")
#: columns of a terminal narrower than WIDE
NARROW, WIDE = ("", "GPUs", "layout", "micro-batch", "step", "MFU", "peak"), 132
#: reasons of refusal that are listed
REASONS = 5
WANTED = {
    Objective.TIME: "time of a step",
    Objective.COST: "GPU-seconds of a step",
    Objective.ENERGY: "energy of a step, every GPU at its power limit",
}


def headline(plan: Plan) -> str:
    """'llama3-70b on 64 x h100-sxm: 1,024 sequences of 8,192 tokens a step, by time of a step'."""
    asked = plan.asked
    where = f"{asked.gpus} x {asked.device.name}" if len(plan.worlds) < 2 else f"up to {max(plan.worlds)} GPUs"
    fixed = "".join(f", {name} {value}" for name, value in asked.fixed.items())
    return (
        f"{asked.base.model.name} on {where}: {plural(asked.global_batch, 'sequence')} of"
        f" {count_text(asked.base.workload.seq_len)} tokens a step, {asked.base.workload.precision},"
        f" by {WANTED[asked.objective]}{fixed and '; fixed' + fixed[1:]}"
    )


def rows(plan: Plan) -> list[list[str]]:
    """A row a layout."""
    return [_row(str(rank), answer, plan) for rank, answer in enumerate(plan.answers, 1)]


def columns(plan: Plan) -> list[str]:
    """Of the rows."""
    more = {Objective.COST: ["GPU-seconds"], Objective.ENERGY: ["energy"], Objective.TIME: []}
    return [*COLUMNS[:1], *(["GPUs"] if len(plan.worlds) > 1 else []), *COLUMNS[1:], *more[plan.asked.objective]]


def front_rows(answers: Sequence[Answer]) -> list[list[str]]:
    """A row a point."""
    return [
        [
            count_text(answer.asked.gpus), str(answer.case.layout), micro_batch_text(answer),
            seconds_text(answer.seconds), bytes_text(answer.peak_bytes), percent_text(answer.memory_share, 0),
        ]
        for answer in answers
    ]  # fmt: skip


def _row(rank: str, answer: Answer, plan: Plan) -> list[str]:
    estimate = answer.simulation.estimate
    cells = [rank, *([count_text(answer.asked.gpus)] if len(plan.worlds) > 1 else [])]
    cells += [
        str(answer.case.layout), micro_batch_text(answer), seconds_text(answer.seconds),
        count_text(estimate.tokens_per_second), percent_text(estimate.mfu, 1), bytes_text(answer.peak_bytes),
        percent_text(answer.memory_share, 0), answer.assessment.verdict.value, binding_text(answer),
    ]  # fmt: skip
    if plan.asked.objective is Objective.COST:
        cells.append(number_text(answer.weight))
    if plan.asked.objective is Objective.ENERGY:
        cells.append(energy_text(answer.weight))
    return cells


def micro_batch_text(answer: Answer) -> str:
    """'2 x 16': sequences at once, times a step."""
    workload = answer.case.workload
    return f"{workload.micro_batch} x {workload.micro_batches}"


def binding_text(answer: Answer) -> str:
    """What keeps it from being faster: the largest part of its step beside compute."""
    simulation = answer.simulation
    part = simulation.overhead
    if part is None or simulation.parts[part] < simulation.step_seconds / 100:
        return "compute"
    return f"{part_name(part)} {percent_text(simulation.parts[part] / simulation.step_seconds, 0)}"


def sentences(plan: Plan) -> Iterator[str]:
    """What was left out and why, and what the times rest on."""
    tally, asked = plan.tally, plan.asked
    of = f" on {asked.gpus} GPUs" if len(plan.worlds) > 1 else ""
    said = [f"{count_text(tally.too_large)} need more memory than counts as fitting"]
    if tally.left and plan.floor is not None:
        said.append(f"{count_text(tally.left)} take at least {seconds_text(plan.floor)}, and were not timed")
    said.append(f"{count_text(tally.timed)} were timed")
    yield f"Of {count_text(tally.legal)} layouts{of}: {', '.join(said)}."
    for why, count in tally.untimed.most_common():
        yield f"{count_text(count)} fit and have no time: {why}."
    reasons = [why for why, _ in tally.refused.most_common(REASONS)]
    if reasons:
        yield f"Refused by rules, among others: {'; '.join(reasons)}."
    slowest = max((answer.seconds for answer in plan.answers if answer.asked.gpus == asked.gpus), default=0.0)
    if plan.floor is not None and plan.floor < slowest:
        yield (
            f"No layout{of} that is not shown can take less than {seconds_text(plan.floor)}; of those between that and"
            f" the last one shown, {seconds_text(slowest)}, not all were simulated whole."
        )
    if plan.answers:
        yield f"Times rest on: {plan.answers[0].simulation.basis or 'nothing that is known'}."


def print_plan(plan: Plan, fronts: Fronts | None, console: Console) -> None:
    """The whole plan."""
    console.print(Text(plain(headline(plan)), style="bold"))
    _table(console, "Best layouts", columns(plan), rows(plan))
    if fronts is not None:
        _table(console, "Less memory, more time", FRONT_COLUMNS, front_rows(fronts.memory))
        _table(console, "Fewer GPUs, more time", FRONT_COLUMNS, front_rows(fronts.gpus))
    for sentence in sentences(plan):
        console.print(Text(plain(sentence)))


def plan_markdown(plan: Plan, fronts: Fronts | None) -> str:
    """The same in GitHub's Markdown."""
    lines = [f"# Plan: {escape(headline(plan))}", "", *_markdown(columns(plan), rows(plan))]
    if fronts is not None:
        for title, answers in (("Less memory, more time", fronts.memory), ("Fewer GPUs, more time", fronts.gpus)):
            lines += ["", f"## {title}", "", *_markdown(FRONT_COLUMNS, front_rows(answers))]
    return "\n".join([*lines, "", *(f"- {escape(sentence)}" for sentence in sentences(plan)), ""])


def _markdown(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(map(escape, row)) + " |"

    return [line([heading or "#" for heading in headings]), "|" + " --- |" * len(headings), *map(line, cells)]


def _table(console: Console, title: str, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Every column on a wide terminal; on a narrow one those that a choice needs. Numbers do not wrap."""
    shown = [place for place, each in enumerate(headings) if console.width >= WIDE or each in NARROW]
    table = Table(title=title, **STYLE)
    for place in shown:
        is_words = headings[place] in ("layout", "binding", "verdict")
        table.add_column(
            headings[place], justify="left" if is_words else "right", overflow="fold",
            no_wrap=headings[place] not in ("layout", "binding"),
        )  # fmt: skip
    for row in cells:
        table.add_row(*(Text(plain(row[place])) for place in shown))
    console.print(table)
