"""Whose turn it is: the actions of all pipeline ranks in one line, each after what it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallelism.schedules.orders import Action, Pass
from parallelism.simulator.engine import Deadlock
from parallelism.simulator.program import source_of


@dataclass(frozen=True, slots=True)
class Turn:
    """An action on a pipeline rank; the turns whose result it waits for and that wait for its own, by number."""

    place: int
    action: Action
    waits_for: int | None = None
    sends_on: int | None = None
    """the stage whose link its result goes over to another rank"""


def turns_of(orders: Sequence[tuple[Action, ...]]) -> list[Turn]:
    """All actions; those of a rank in its order. Raises Deadlock."""
    place_of = {action: place for place, order in enumerate(orders) for action in order}
    last_stage = max(action.stage for action in place_of)
    sources = {action: _source(action, last_stage, place_of) for action in place_of}
    links = {
        source: min(source.stage, action.stage)
        for action, source in sources.items()
        if source is not None and place_of[source] != place_of[action]
    }
    numbers: dict[Action, int] = {}
    turns: list[Turn] = []
    ahead = [0] * len(orders)
    while len(turns) < len(place_of):
        before = len(turns)
        for place, order in enumerate(orders):
            while ahead[place] < len(order):
                action = order[ahead[place]]
                source = sources[action]
                if source is not None and source not in numbers:
                    break
                numbers[action] = len(turns)
                turns.append(Turn(place, action, None if source is None else numbers[source], links.get(action)))
                ahead[place] += 1
        if len(turns) == before:
            raise Deadlock(f"{len(place_of) - before} actions wait for each other")
    return turns


def _source(action: Action, last_stage: int, known: dict[Action, int]) -> Action | None:
    """What it waits for; a stage that does not split its backward pass gives both halves at once."""
    source = source_of(action, last_stage)
    if source is not None and source.kind is Pass.INPUT and source not in known:
        return Action(source.stage, Pass.BACKWARD, source.micro_batch)
    return source
