"""What a pipeline rank's device does over a simulated step, in pieces wide enough to be seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import cast

from parallelism.schedules.orders import Action, Pass
from parallelism.simulator.parts import Span, spans_of
from parallelism.simulator.plan import COMMUNICATION, Part
from parallelism.simulator.program import STREAMS, Label, Stream
from parallelism.simulator.simulation import Simulation


class Work(StrEnum):
    """What is done, as a picture tells it apart."""

    FORWARD = "forward"
    BACKWARD = "backward"
    INPUT = "input gradients"
    WEIGHT = "weight gradients"
    RECOMPUTE = "recompute"
    OPTIMIZER = "optimizer"
    COMMUNICATION = "communication"
    HOST = "waiting for the host"
    BUBBLE = "bubble"


_PASSES = {
    Pass.FORWARD: Work.FORWARD,
    Pass.BACKWARD: Work.BACKWARD,
    Pass.INPUT: Work.INPUT,
    Pass.WEIGHT: Work.WEIGHT,
}
_PARTS = {
    Part.RECOMPUTE: Work.RECOMPUTE,
    Part.OPTIMIZER: Work.OPTIMIZER,
    Part.HOST: Work.HOST,
    Part.BUBBLE: Work.BUBBLE,
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of one kind of work, in seconds; `count` tasks or gaps make it up."""

    work: Work
    start: float
    end: float
    action: Action | None = None
    name: str = ""
    count: int = 1

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.end - self.start


def device_pieces(simulation: Simulation, place: int, narrowest: float) -> list[Piece]:
    """A rank's device over the whole step, without holes. Work of a pass that alternates in pieces shorter than
    `narrowest` seconds is summed by kind."""
    spans = spans_of(simulation.program, simulation.times, place)
    pieces = [_piece(simulation, span) for span in spans if span.end > span.start]
    found: list[Piece] = []
    for _, group in groupby(_in_passes(pieces), key=lambda pair: pair[0]):
        joined = list(_joined([piece for _, piece in group]))
        found += _summed(joined) if len(joined) > 1 and min(map(_seconds, joined)) < narrowest else joined
    return found


def stream_pieces(simulation: Simulation, place: int, stream: Stream, narrowest: float) -> list[Piece]:
    """What a stream of a rank carries; pieces that follow each other within `narrowest` seconds are one."""
    graph, times = simulation.program.graph, simulation.times
    found: list[Piece] = []
    for task in simulation.program.tasks_of.get(place * STREAMS + stream, []):
        start, end = times.start[task], times.end[task]
        if end == start:
            continue
        label = cast(Label, graph.label[task])
        if found and start - found[-1].start < narrowest:
            name = _name(label.part, None)
            found[-1] = Piece(Work.COMMUNICATION, found[-1].start, end, None, name, found[-1].count + 1)
        else:
            found.append(Piece(Work.COMMUNICATION, start, end, label.action, _name(label.part, label)))
    return found


def _piece(simulation: Simulation, span: Span) -> Piece:
    """A span as a picture tells it."""
    label = None if span.task is None else cast(Label, simulation.program.graph.label[span.task])
    action = label.action if label else None
    if span.part is Part.COMPUTE and action:
        work = _PASSES[action.kind]
    elif span.part in COMMUNICATION:
        work = Work.COMMUNICATION
    else:
        work = _PARTS.get(span.part, Work.FORWARD)
    return Piece(work, span.start, span.end, action, _name(span.part, label))


def _name(part: Part, label: Label | None) -> str:
    """The unit that is computed; of communication, what it is and for which unit."""
    unit = label.name if label else ""
    return ", ".join(filter(None, [part.value.replace("_", " "), unit])) if part in COMMUNICATION else unit


def _in_passes(pieces: list[Piece]) -> Iterator[tuple[int, Piece]]:
    """Each with the number of the run of one pass that it is in; gaps inside a pass belong to it."""
    actions = [piece.action for piece in pieces]
    number, current = 0, actions[0] if actions else None
    for place, piece in enumerate(pieces):
        action = piece.action
        is_inside = action is None and current is not None and _next_action(actions, place) == current
        if not is_inside and action != current:
            number, current = number + 1, action
        yield number, piece


def _next_action(actions: list[Action | None], place: int) -> Action | None:
    """Of the piece after this one."""
    return actions[place + 1] if place + 1 < len(actions) else None


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Neighbours of one kind as one; each keeps its name where it stands alone."""
    for work, group in groupby(pieces, key=lambda piece: piece.work):
        run = list(group)
        named = run[0].name if len(run) == 1 else ""
        action = next((piece.action for piece in run if piece.action), None)
        yield Piece(work, run[0].start, run[-1].end, action, named, len(run))


def _summed(pieces: list[Piece]) -> list[Piece]:
    """One piece a kind, end to end from where the first began."""
    found, at = [], pieces[0].start
    action = next((piece.action for piece in pieces if piece.action), None)
    for work in dict.fromkeys(piece.work for piece in pieces):
        own = [piece for piece in pieces if piece.work is work]
        until = at + sum(piece.seconds for piece in own)
        found.append(Piece(work, at, until, action, "", sum(piece.count for piece in own)))
        at = until
    return found


def _seconds(piece: Piece) -> float:
    return piece.seconds
