"""What a pipeline rank does in a step, beat by beat: passes of its stages, and what torch frees between them.

Read off torch/distributed/pipelining (stage.py, schedules.py, _backward.py) and held to allocator traces:
- a stage receives every micro-batch's input, and its output's gradient, in buffers of their own, which stay;
- an output lives until the micro-batch's backward pass is over, and as long as a send or a variable holds it: to the
  end of the step, but under 1F1B until it sends the next;
- so does the gradient of an input, which the previous stage is sent;
- stages of one rank that follow each other (in V schedules) hand their tensors over into the buffers' places.

The beats depend on the schedule alone, not on what the stages hold or what shards them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from memory.references import Passed, References
from memory.stage_passes import Doing
from parallelism.schedules.gathers import gathers_ahead, stages_ahead
from parallelism.schedules.orders import Action, Pass, order_of
from parallelism.schedules.stages import stages_of_rank
from suite.layout import Layout, Schedule
from suite.record import Moment


class Freed(Enum):
    """What is freed between passes."""

    __hash__ = object.__hash__

    OUTPUT = auto()  # of a stage
    INPUT_GRADIENT = auto()
    BUFFER = auto()  # one whose place a handed-over tensor takes


class Part(Enum):
    """Which part of a pass."""

    __hash__ = object.__hash__

    BODY = auto()  # of the last stage's forward pass: all before the head
    LOSS = auto()  # from the head on
    FINISH = auto()  # what comes and goes when the schedule is over


class Beat(NamedTuple):
    """One thing that happens on a stage, in a moment's window (none: nothing, but a window or a level is there);
    `level`: the moment that is read after it. What FSDP2 does, as Doing, happens only where it shards."""

    stage: int
    what: Pass | Doing | Freed | Part | None
    window: Moment
    level: Moment | None = None


@dataclass(frozen=True, eq=False)
class Beats:
    """Distinct beats, and their numbers in the order they come."""

    distinct: tuple[Beat, ...]
    order: list[int]


def beats_of(layout: Layout, micro_batches: int, pp_rank: int) -> Beats:
    """The beats of one step of a pipeline rank. Of the layout the schedule counts, and how many ranks and stages."""
    writer = _Writer(layout, micro_batches, pp_rank)
    writer.write()
    return Beats(tuple(writer.numbers), writer.order)


class _Writer:
    def __init__(self, layout: Layout, micro_batches: int, pp_rank: int) -> None:
        self.actions = order_of(layout, micro_batches, pp_rank)
        self.micro_batches = micro_batches
        self.mine = stages_of_rank(layout, pp_rank)
        self.last = layout.stages - 1
        self.ahead = stages_ahead(self.actions) if gathers_ahead(layout) else None
        self.is_one_f_one_b = layout.schedule is Schedule.ONE_F_ONE_B
        # forward passes before the first backward: torch counts one more to its warm-up than the paper
        self.warm_up = min(micro_batches, layout.pp - pp_rank)
        self.held = References()
        self.sent: list[Passed] = []
        self.window = Moment.FORWARD_PEAK
        self.forwards = 0
        self.numbers: dict[Beat, int] = {}
        self.order: list[int] = []

    def write(self) -> None:
        """Put the beats in order."""
        ends = {action.stage: place for place, action in enumerate(self.actions)}
        near: Sequence[int] = ()
        for place, action in enumerate(self.actions):
            if self.ahead is not None and self.ahead[place] is not near:
                self._gather_ahead(near, self.ahead[place])
                near = self.ahead[place]
            if action.kind is Pass.FORWARD:
                self.forwards += 1
                self._forward(action)
            else:
                self._start_backward()
                self._backward(action)
            self._free()
            if ends[action.stage] == place:
                self._put(action.stage, Doing.REDUCE)
        self._finish()

    def _gather_ahead(self, before: Sequence[int], near: Sequence[int]) -> None:
        """What schedules of several stages a rank gather and release before an action."""
        for stage in sorted(set(before) - set(near)):
            self._put(stage, Doing.RELEASE)
        for stage in near:
            if stage not in before:
                self._put(stage, Doing.GATHER)

    # --- passes -----------------------------------------------------------------------------------------

    def _forward(self, action: Action) -> None:
        stage, item = action.stage, action.micro_batch
        if stage == self.last:
            self._put(stage, Part.BODY)
            if self.window is Moment.FORWARD_PEAK:
                self._level(Moment.AFTER_FORWARD)
                self.window = Moment.LOSS
            self._put(stage, Part.LOSS)
            return
        self._put(stage, Pass.FORWARD)
        if stage + 1 in self.mine:
            self._put(stage, Freed.BUFFER)  # the output is in its place
            return
        output = Passed(stage, False)
        if not self.is_one_f_one_b:
            self.sent.append(output)
            return
        self.held.assign(("cache", item), output)
        self.held.assign("output", output)
        self.held.assign("fwd_sends", output)
        if item < self.warm_up - 1:
            self.held.assign("send_work", output)

    def _backward(self, action: Action) -> None:
        stage, item = action.stage, action.micro_batch
        self._put(stage, action.kind)
        if action.kind is Pass.WEIGHT:
            return
        self.held.drop(("cache", item))
        if stage == 0:
            return
        if stage - 1 in self.mine:
            self._put(stage, Freed.BUFFER)
            return
        gradient = Passed(stage, True)
        if not self.is_one_f_one_b:
            self.sent.append(gradient)
            return
        self.held.assign("bwd_sends", gradient)
        if self.forwards == self.micro_batches:
            self.held.assign("send_work", gradient)

    def _start_backward(self) -> None:
        if self.window is Moment.BACKWARD_PEAK:
            return
        if self.last not in self.mine:
            self._level(Moment.AFTER_FORWARD)
            self._add(Beat(self.mine[0], None, Moment.LOSS))
        self.window = Moment.BACKWARD_PEAK

    def _finish(self) -> None:
        """The schedule returns; a tied head's gradient is exchanged with the embedding's."""
        for name in list(self.held.names):
            self.held.drop(name)
        self._free()
        for tensor in self.sent:
            self._release(tensor)
        self._put(self.mine[0], Part.FINISH)
        self._level(Moment.AFTER_BACKWARD)

    # --- beats ------------------------------------------------------------------------------------------

    def _free(self) -> None:
        for tensor in self.held.take():
            self._release(tensor)

    def _release(self, tensor: Passed) -> None:
        self._put(tensor.stage, Freed.INPUT_GRADIENT if tensor.is_gradient else Freed.OUTPUT)

    def _level(self, moment: Moment) -> None:
        self._add(Beat(self.mine[0], None, self.window, moment))

    def _put(self, stage: int, what: Pass | Doing | Freed | Part) -> None:
        self._add(Beat(stage, what, self.window))

    def _add(self, beat: Beat) -> None:
        self.order.append(self.numbers.setdefault(beat, len(self.numbers)))
