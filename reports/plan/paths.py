"""The longest path through a pipeline: no step can be shorter than any chain of passes that wait for each other.

A path is found once for each schedule, by the times of one layout, and counted: so many forward passes of stage 0, and
so on. With the times of another layout the same path is a bound of that one's step, whichever path is its longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from parallelism.schedules.orders import Action, Pass, order_of
from parallelism.simulator.turns import turns_of
from suite.layout import Layout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
else:
    Numbers = Any


class StageTimes(NamedTuple):
    """[stages] each: seconds of a micro-batch's forward pass, of its backward pass as far as the stage before waits
    for it, and of what is left, the gradients of weights."""

    forward: Numbers
    inputs: Numbers
    weights: Numbers


class Path(NamedTuple):
    """[stages] each: how many passes of a kind are on it."""

    forward: Numbers
    inputs: Numbers
    weights: Numbers

    def seconds(self, times: StageTimes) -> float:
        """Of all passes on it, one after the other."""
        return float(sum(count @ each for count, each in zip(self, times, strict=True)))


def longest_path(layout: Layout, micro_batches: int, times: StageTimes) -> Path:
    """Of a step with those times, were there nothing but passes: no messages, no host. Raises Deadlock."""
    turns = turns_of([order_of(layout, micro_batches, place) for place in range(layout.pp)])
    rows = [each.tolist() for each in (times.forward, times.inputs, times.weights)]
    seconds = {
        Pass.FORWARD: rows[0],
        Pass.INPUT: rows[1],
        Pass.WEIGHT: rows[2],
        Pass.BACKWARD: [inputs + weights for inputs, weights in zip(rows[1], rows[2], strict=True)],
    }
    ends = [0.0] * len(turns)
    after = [-1] * len(turns)  # the turn that each had to wait for
    latest = [-1] * layout.pp
    for number, turn in enumerate(turns):
        before, source = latest[turn.place], turn.waits_for
        if source is not None and (before < 0 or ends[source] > ends[before]):
            before = source
        start = ends[before] if before >= 0 else 0.0
        ends[number] = start + seconds[turn.action.kind][turn.action.stage]
        after[number] = before
        latest[turn.place] = number
    place = max(range(len(turns)), key=ends.__getitem__)
    line: list[Action] = []
    while place >= 0:
        line.append(turns[place].action)
        place = after[place]
    return _counted(line, len(rows[0]))


def _counted(line: Sequence[Action], stages: int) -> Path:
    import numpy as np

    path = Path(*(np.zeros(stages) for _ in range(3)))
    for action in line:
        if action.kind is Pass.FORWARD:
            path.forward[action.stage] += 1
        if action.kind in (Pass.INPUT, Pass.BACKWARD):
            path.inputs[action.stage] += 1
        if action.kind in (Pass.WEIGHT, Pass.BACKWARD):
            path.weights[action.stage] += 1
    return path
