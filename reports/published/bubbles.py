"""Bubble rates that were computed from profiled stage times (arXiv:2401.10241, tables 5 and 6): the engine's."""

from __future__ import annotations

import re

from parallelism.schedules.orders import Action, Pass, order_of
from parallelism.schedules.zero_bubble import HandMade, hand_made_orders
from parallelism.schedules.zero_bubble_search import StageTimes, searched_orders
from parallelism.simulator.engine import run
from parallelism.simulator.equal_stages import equal_stages, longest_span
from parallelism.simulator.megatron.orders import stage_memory
from parallelism.simulator.plan import StepPlan
from parallelism.simulator.program import Label, Program, Stream, program_of
from reports.published.answers import CannotModel, Prediction
from suite.layout import Layout, Schedule
from suite.published import PublishedRow, UnreadableCell

_SCHEDULE = re.compile(r"schedule=([\w-]+)", flags=re.ASCII)
_NUMBER = r"\s*(\d+(?:\.\d+)?)\s*"
_TIMES = re.compile(rf"\({_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\)", flags=re.ASCII)


def bubble_rate(row: PublishedRow) -> Prediction:
    """(cost - m (TF + TB + TW)) / cost of the row's schedule, on equal stages of the times in its notes.

    Cost is the longest span of a rank. CannotModel for a schedule that is not known, UnreadableCell where the times or
    what the schedule is made for is missing.
    """
    plan, chunks, micro_batches = _plan(row)
    ideal = micro_batches * _times(row).compute
    program = program_of(plan)
    cost = longest_span(program, run(program.graph))
    if chunks == 1:
        return Prediction((cost - ideal) / cost, "longest span of a rank, simulated on equal stages")
    forget_returns(program, len(plan.orders))
    theirs = longest_span(program, run(program.graph))
    return Prediction(
        (theirs - ideal) / theirs,
        f"longest span of a rank, simulated on equal stages; {(cost - ideal) / cost:.4f} with every message waited for",
        ("a gradient that returns from the first rank to the last is waited for once a round, as its authors do",),
    )


def forget_returns(program: Program, pp: int) -> None:
    """Let the last rank take a gradient that comes back from the first without waiting, but for the first of a round.

    What the authors' script for interleaved 1F1B counts: it leaves out p messages of a step that a run would wait for.
    """
    for task, label in enumerate(program.graph.label):
        if not isinstance(label, Label) or label.stream is not Stream.COMPUTE or label.action is None:
            continue
        action = label.action
        is_return = action.kind is Pass.BACKWARD and label.place == pp - 1
        if is_return and action.micro_batch % pp:
            program.graph.after[task] = ()


def _plan(row: PublishedRow) -> tuple[StepPlan, int, int]:
    """(plan, chunks a rank, micro-batches)."""
    times, pp, count = _times(row), row.need("pp"), row.need("grad_accum")
    named = _SCHEDULE.search(row.text("extra"))
    name = named[1].lower() if named else ""
    match name:
        case "1f1b":
            return equal_stages(_orders(Layout(pp=pp, schedule=Schedule.ONE_F_ONE_B), count), times), 1, count
        case "1f1b-i":
            chunks = _chunks(row, pp)
            layout = Layout(pp=pp, schedule=Schedule.INTERLEAVED, virtual_stages=chunks)
            return equal_stages(_orders(layout, count), times, chunks), chunks, count
        case "zb-h1" | "zb-h2":
            kind = HandMade.ZB_H1 if name == "zb-h1" else HandMade.ZB_H2
            return equal_stages(hand_made_orders(kind, pp, count), times), 1, count
        case "zb-1p" | "zb-2p":
            memory = stage_memory(row.need("hidden"), row.need("heads"), row.need("seq_len"), int(name[3]) * pp)
            orders = searched_orders(pp, count, times, memory)
            return equal_stages(orders, times), 1, count
    raise CannotModel(f"schedule {name!r}: known are 1f1b, 1f1b-i, zb-h1, zb-h2, zb-1p, zb-2p")


def _orders(layout: Layout, count: int) -> tuple[tuple[Action, ...], ...]:
    return tuple(order_of(layout, count, place) for place in range(layout.pp))


def _chunks(row: PublishedRow, pp: int) -> int:
    """Model chunks a rank: as stated, or one a layer where the embedding and the head count as one each."""
    if "per chunk" not in row.text("vp"):
        return row.need("vp")
    chunks, rest = divmod(row.need("layers") + 2, pp)
    if rest:
        raise UnreadableCell(f"layers {row.need('layers')} and two more are not a multiple of pp {pp}")
    return chunks


def _times(row: PublishedRow) -> StageTimes:
    """TF, TB, TW and Tcomm as the notes give them, in ms."""
    found = _TIMES.search(row.text("notes"))
    if found is None:
        raise UnreadableCell("notes: no stage times (TF, TB, TW, Tcomm) stand there")
    forward, inputs, weights, send = (float(each) / 1e3 for each in found.groups())
    return StageTimes(forward, inputs, weights, send)
