"""Steps of pipelines whose stages all take the same: bubbles of schedules, with nothing else in the way."""

from __future__ import annotations

from collections.abc import Sequence

from parallelism.schedules.orders import Action
from parallelism.schedules.zero_bubble_search import StageTimes
from parallelism.simulator.engine import Times
from parallelism.simulator.plan import Cost, StagePlan, StepPlan, Unit
from parallelism.simulator.program import STREAMS, Program, Stream


def equal_stages(orders: Sequence[tuple[Action, ...]], times: StageTimes, chunks: int = 1) -> StepPlan:
    """A step of equal stages, `chunks` of them a rank, which share a rank's times evenly; a message takes as long
    whatever the chunks. Not counted: the optimizer, gradients' reduction, a host."""
    unit = Unit(
        "stage", Cost(times.forward / chunks), Cost(times.inputs / chunks), Cost(times.weights / chunks)
    )  # fmt: skip
    stages = (StagePlan((unit,), times.send),) * (len(orders) * chunks)
    return StepPlan(tuple(orders), stages, (Cost(),) * len(orders))


def longest_span(program: Program, times: Times) -> float:
    """Seconds from the first pass of a rank to the end of its last, of the rank where they are most.

    That is what a step costs where ranks need not start together: where the optimizer waits for no other rank, as
    arXiv:2401.10241 has it (section 4). It is less than the step's time by the warm-up of the later ranks.
    """
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    for task, queue in enumerate(program.graph.queue):
        place, stream = divmod(queue, STREAMS)
        if stream == Stream.COMPUTE and program.graph.seconds[task]:
            first[place] = min(first.get(place, times.start[task]), times.start[task])
            last[place] = max(last.get(place, 0.0), times.end[task])
    return max((last[place] - first[place] for place in first), default=0.0)
