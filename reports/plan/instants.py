"""What the first rank of a pipeline holds in passing, at the instants at which it may hold most."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from parallelism.schedules.orders import Pass, order_of
from parallelism.schedules.stages import stages_of_rank
from reports.plan.space import Pipe
from suite.layout import Layout, Schedule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
else:
    Numbers = Any


@dataclass(frozen=True)
class Flying:
    """Of the first pipeline rank, at instants that no other is above."""

    parameters: float
    activations: Numbers
    """[instants]: bytes of what is in flight"""
    whole_gradients: Numbers
    """[instants]: parameters whose gradients wait for the end of the step"""
    used: Numbers
    """[instants]: parameters of the stage whose backward pass ends there: they are gathered"""
    stay: Numbers
    """[instants]: parameters that stay gathered where the layout does not free them"""


def instants_of(pipe: Pipe, micro_batches: int) -> Any:
    """[instants, 3 x stages of the first rank]: micro-batches in flight; whether gradients of earlier ones wait;
    whether a backward pass has just ended. Instants at which another has all that one has, and more, are left out."""
    import numpy as np

    if pipe.pp == 1:
        return np.array([[1, micro_batches > 1, 0]])
    layout = pipeline_of(pipe)
    stages = stages_of_rank(layout, 0)
    place = {stage: index for index, stage in enumerate(stages)}
    flying, done = [0] * len(stages), [False] * len(stages)
    found: set[tuple[int, ...]] = set()
    order = order_of(layout, micro_batches, 0)
    last = {action.stage: at for at, action in enumerate(order)}
    for at, action in enumerate(order):
        index, used = place[action.stage], [False] * len(stages)
        if action.kind is Pass.FORWARD:
            flying[index] += 1
        else:
            # of a backward pass in two, what the second half still needs is not counted
            flying[index] -= action.kind is not Pass.WEIGHT
            done[index] = done[index] or action.kind is not Pass.INPUT
            used[index] = action.kind is not Pass.WEIGHT
        found.add((*flying, *done, *used))
        # gradients are reduced, and parameters freed, after a stage's last pass
        done[index] = done[index] and at < last[action.stage]
    rows = np.array(sorted(found, reverse=True))
    return rows[[not (np.all(rows >= row, axis=1) & np.any(rows > row, axis=1)).any() for row in rows]]


def pipeline_of(pipe: Pipe) -> Layout:
    """A layout with that pipeline and nothing else."""
    return _laid_out(pipe.pp, pipe.schedule, pipe.virtual_stages)


@cache
def _laid_out(pp: int, schedule: Schedule, virtual_stages: int) -> Layout:
    return Layout(pp=pp, schedule=schedule, virtual_stages=virtual_stages)
