"""Where a step's time goes: a pipeline rank's device from the first task to the last, every gap with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from parallelism.simulator.engine import Times
from parallelism.simulator.plan import Part
from parallelism.simulator.program import STREAMS, Label, Program, Stream


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a rank's device time: a task, or (None) a gap and what it was waited for."""

    part: Part
    start: float
    end: float
    task: int | None = None


def parts_of(program: Program, times: Times, place: int) -> dict[Part, float]:
    """Seconds of each part on a pipeline rank; they sum to the step. Compute that other work slowed down counts in
    full."""
    found = dict.fromkeys(Part, 0.0)
    for span in spans_of(program, times, place):
        found[span.part] += span.end - span.start
    return found


def spans_of(program: Program, times: Times, place: int) -> Iterator[Span]:
    """A pipeline rank's device from the first task of the step to the last, in order and without holes.

    A gap is time on a link as far as what ended it was on a link meanwhile, or the host's as far as the host was
    issuing; the rest of it is bubble.
    """
    graph, now = program.graph, 0.0
    for task in program.tasks_of[place * STREAMS + Stream.COMPUTE]:
        yield from _gap(program, times, task, now)
        yield Span(cast(Label, graph.label[task]).part, times.start[task], times.end[task], task)
        now = times.end[task]
    if times.total > now:
        yield Span(Part.BUBBLE, now, times.total)


def _gap(program: Program, times: Times, task: int, since: float) -> Iterator[Span]:
    """Why nothing ran from `since` to the task's start."""
    graph, until = program.graph, times.start[task]
    if until <= since:
        return
    cause = max(graph.after[task], key=lambda other: times.end[other])
    label, place = cast(Label, graph.label[cause]), cast(Label, graph.label[task]).place
    if label.stream is Stream.COMPUTE or (label.stream is not Stream.SEND and label.place != place):
        yield Span(Part.BUBBLE, since, until)  # another rank was not ready
        return
    if label.stream is not Stream.SEND:
        yield Span(label.part, since, until)  # its own queue was what it waited for
        return
    sent = max(since, times.start[cause])
    if sent > since:
        yield Span(Part.BUBBLE, since, sent)
    yield Span(label.part, sent, until)


def critical_place(program: Program, times: Times) -> int:
    """The pipeline rank that computes longest: the one whose parts say what to change."""

    def computing(place: int) -> float:
        return sum(times.end[task] - times.start[task] for task in program.tasks_of[place * STREAMS + Stream.COMPUTE])

    return max(range(program.places), key=computing)
