"""How often FSDP2 gathers a pipeline stage's parameters in a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import Enum, auto

from parallelism.schedules.orders import Action, Pass, schedule_order
from parallelism.schedules.stages import rank_of_stage
from suite.case import Case
from suite.layout import Layout, Schedule

#: stages that torch's schedules of several a rank gather ahead (torch/distributed/pipelining: _add_unshard_reshard)
STAGES_AHEAD = 3


class Held(Enum):
    """What a rank has of a unit's parameters."""

    __hash__ = object.__hash__  # members are single objects; Enum's own is slow where much is looked up

    SHARD = auto()
    PART = auto()  # gathered among fewer ranks, where reshard_after_forward is a number
    WHOLE = auto()


def gathers(case: Case, stage: int, after_forward: Held) -> Counter[tuple[str, Held]]:
    """(What for, what it is gathered from) -> how often, in one step, for a unit of the stage.

    A forward pass leaves a unit as `after_forward` says. A backward pass leaves it whole until the stage's gradients
    are reduced, once, after its last: a forward in between finds it there. With several stages a rank, torch gathers
    the next three ahead and lets go of others. Source: torch/distributed/pipelining/stage.py,
    backward_maybe_with_nosync and perform_reduce_grad.
    """
    order = schedule_order(case, rank_of_stage(case.layout, stage))
    ahead = stages_ahead(order) if gathers_ahead(case.layout) else None
    found: Counter[tuple[str, Held]] = Counter()
    held, is_ahead = Held.SHARD, False
    for place, action in enumerate(order):
        if ahead is not None:
            is_near = stage in ahead[place]
            if is_near and not is_ahead and held is not Held.WHOLE:
                found["forward", held] += 1
                held = Held.WHOLE
            elif is_ahead and not is_near:
                held = Held.SHARD
            is_ahead = is_near
        if action.stage != stage:
            continue
        is_forward = action.kind is Pass.FORWARD
        if held is not Held.WHOLE:
            found["forward" if is_forward else "backward", held] += 1
        held = after_forward if is_forward else Held.WHOLE
    return found


def gathers_ahead(layout: Layout) -> bool:
    """Does the schedule gather whole stages ahead? Those of several a rank do."""
    return layout.schedule not in (Schedule.GPIPE, Schedule.ONE_F_ONE_B)


def stages_ahead(order: Sequence[Action]) -> list[tuple[int, ...]]:
    """From each place of an order on, the next stages that it comes to, as many as are gathered ahead. One tuple
    serves all places in a row where they are the same."""
    coming: tuple[int, ...] = ()
    near = coming
    found = []
    for action in reversed(order):
        if coming[:1] != (action.stage,):
            coming = (action.stage, *(stage for stage in coming if stage != action.stage))
            near = coming[:STAGES_AHEAD]
        found.append(near)
    return found[::-1]
