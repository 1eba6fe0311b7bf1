"""Where a step's time goes: a pipeline rank's device from the first task to the last, every gap with its reason."""

from __future__ import annotations

from typing import cast

from parallelism.simulator.engine import Times
from parallelism.simulator.plan import Part
from parallelism.simulator.program import STREAMS, Label, Program, Stream


def parts_of(program: Program, times: Times, place: int) -> dict[Part, float]:
    """Seconds of each part on a pipeline rank; they sum to the step.

    A gap is time on a link as far as what ended it was on a link meanwhile, or the host's as far as the host was
    issuing; the rest of it is bubble. Compute that other work slowed down counts in full.
    """
    found = dict.fromkeys(Part, 0.0)
    graph, now = program.graph, 0.0
    for task, queue in enumerate(graph.queue):
        if queue != place * STREAMS + Stream.COMPUTE:
            continue
        label = cast(Label, graph.label[task])
        for part, seconds in _gap(program, times, task, now):
            found[part] += seconds
        found[label.part] += times.end[task] - times.start[task]
        now = times.end[task]
    found[Part.BUBBLE] += max(0.0, times.total - now)
    return found


def _gap(program: Program, times: Times, task: int, since: float) -> list[tuple[Part, float]]:
    """Why nothing ran from `since` to the task's start."""
    until = times.start[task]
    if until <= since:
        return []
    graph = program.graph
    cause = max(graph.after[task], key=lambda other: times.end[other])
    label = cast(Label, graph.label[cause])
    if label.stream is Stream.COMPUTE:
        return [(Part.BUBBLE, until - since)]
    own = until - max(since, times.start[cause])
    if label.stream in (Stream.GATHER, Stream.REDUCE, Stream.HOST):
        return [(label.part, until - since)]  # its own queue was what it waited for
    return [(label.part, own), (Part.BUBBLE, until - since - own)]


def critical_place(program: Program, times: Times) -> int:
    """The pipeline rank that computes longest: the one whose parts say what to change."""
    sums = [0.0] * program.places
    for task, queue in enumerate(program.graph.queue):
        place, stream = divmod(queue, STREAMS)
        if stream == Stream.COMPUTE:
            sums[place] += times.end[task] - times.start[task]
    return max(range(program.places), key=lambda place: sums[place])
