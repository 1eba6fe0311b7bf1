"""What a pipeline rank does in a step, note by note: passes of its stages, and what torch frees between them.

Read off torch/distributed/pipelining (stage.py, schedules.py, _backward.py) and held to allocator traces:
- a stage receives every micro-batch's input, and its output's gradient, in buffers of their own, which stay;
- an output lives until the micro-batch's backward pass is over, and as long as a send or a variable holds it: to the
  end of the step, but under 1F1B until it sends the next;
- so does the gradient of an input, which the previous stage is sent;
- stages of one rank that follow each other (in V schedules) hand their tensors over into the buffers' places.

The notes depend on the schedule alone, not on what the stages hold.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from enum import Enum, auto
from functools import cached_property
from typing import NamedTuple

from memory.references import Passed, References
from memory.stage_passes import Doing, Progress
from parallelism.schedules.gathers import STAGES_AHEAD, gathers_ahead, next_stages
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

    BODY = auto()
    LOSS = auto()  # from the head on
    FINISH = auto()  # what comes and goes when the schedule is over


class Letter(NamedTuple):
    """One thing that happens: of letters that are equal each allocates the same."""

    stage: int
    what: Doing | Freed | Part
    progress: Progress | None = None  # what the stage's passes have left
    part: Part = Part.BODY


class Note(NamedTuple):
    """A letter in a moment's window (none: nothing is allocated); `level`: the moment that is read after it."""

    letter: Letter | None
    window: Moment
    level: Moment | None = None


def score_of(
    layout: Layout, micro_batches: int, pp_rank: int, joined: frozenset[int], start: Progress, is_sharded: bool
) -> list[Note]:
    """The notes of one step of a pipeline rank.

    `joined`: stages whose weights' gradients are computed with their inputs'. `start`: what a stage's passes find at
    first. Of the layout the schedule and the numbers of ranks and stages count.
    """
    return _Writer(layout, micro_batches, pp_rank, joined, start, is_sharded).write()


class _Writer:
    def __init__(
        self, layout: Layout, micro_batches: int, pp_rank: int, joined: frozenset[int], start: Progress,
        is_sharded: bool,
    ) -> None:  # fmt: skip
        self.layout = layout
        self.micro_batches = micro_batches
        self.pp_rank = pp_rank
        self.joined = joined
        self.is_sharded = is_sharded
        self.mine = stages_of_rank(layout, pp_rank)
        self.last = layout.stages - 1
        self.progress = dict.fromkeys(self.mine, start)
        self.held = References()
        self.window = Moment.FORWARD_PEAK
        self.notes: list[Note] = []
        self.near: set[int] = set()
        self.forwards = 0
        self.after: dict[tuple[int, Doing], Progress] = {}

    def write(self) -> list[Note]:
        """The notes in order."""
        order = order_of(self.layout, self.micro_batches, self.pp_rank)
        ends = {action.stage: place for place, action in enumerate(order)}
        for place, action in enumerate(order):
            self._gather_ahead(order, place, ends)
            if action.kind is Pass.FORWARD:
                self.forwards += 1
                self._forward(action)
            else:
                self._start_backward()
                self._backward(action)
            self._free()
            if self.is_sharded and ends[action.stage] == place:
                self._do(action.stage, Doing.REDUCE)
        self._finish()
        return self.notes

    def _gather_ahead(self, order: Sequence[Action], place: int, ends: Mapping[int, int]) -> None:
        """What schedules of several stages a rank gather and release before an action."""
        if not self.is_sharded or not gathers_ahead(self.layout):
            return
        coming = sum(end >= place for end in ends.values())
        near = next_stages(order, place, min(STAGES_AHEAD, coming))
        for stage in sorted(self.near - set(near)):
            self._do(stage, Doing.RELEASE)
        for stage in near:
            if stage not in self.near:
                self._do(stage, Doing.GATHER)
        self.near = set(near)

    # --- passes -----------------------------------------------------------------------------------------

    def _forward(self, action: Action) -> None:
        stage, item = action.stage, action.micro_batch
        before = self._do(stage, Doing.FORWARD)
        if stage == self.last:
            if self.window is Moment.FORWARD_PEAK:
                self._level(Moment.AFTER_FORWARD)
                self.window = Moment.LOSS
            self._put(Letter(stage, Doing.FORWARD, before, Part.LOSS))
            return
        output = Passed(stage, False)
        self.held.assign(("cache", stage, item), output)
        if stage + 1 in self.mine:
            self._hand_over(("input", stage + 1, item), output)
        elif self._is_one_f_one_b:
            self.held.assign("output", output)
            self.held.assign("fwd_sends", output)
            if item < self._warm_up - 1:
                self.held.assign("send_work", output)
        else:
            self.held.assign(("send", output), output)

    def _backward(self, action: Action) -> None:
        stage, item = action.stage, action.micro_batch
        self._derive(action)
        if action.kind is Pass.WEIGHT:
            return
        self.held.drop(("cache", stage, item))
        if stage == 0:
            return
        gradient = Passed(stage, True)
        if stage - 1 in self.mine:
            self._hand_over(("gradient", stage - 1, item), gradient)
        elif self._is_one_f_one_b:
            self.held.assign("bwd_sends", gradient)
            if self.forwards == self.micro_batches:
                self.held.assign("send_work", gradient)
        else:
            self.held.assign(("send", gradient), gradient)

    def _derive(self, action: Action) -> None:
        """The part of a backward pass that is done now. The first stage, whose input needs no gradient, does all of it
        with its weights; a stage whose weights are joined to its inputs, with those."""
        stage = action.stage
        is_joined = stage in self.joined
        if action.kind is Pass.BACKWARD:
            self._do(stage, Doing.BACKWARD)
        elif is_joined or stage == 0:
            if action.kind is (Pass.INPUT if is_joined else Pass.WEIGHT):
                self._do(stage, Doing.BACKWARD)
        else:
            self._do(stage, Doing.INPUTS if action.kind is Pass.INPUT else Doing.WEIGHTS)

    def _hand_over(self, name: Hashable, tensor: Passed) -> None:
        """Put a tensor in a buffer's place."""
        self.held.assign(name, tensor)
        self._put(Letter(tensor.stage, Freed.BUFFER))

    def _start_backward(self) -> None:
        if self.window is Moment.BACKWARD_PEAK:
            return
        if self.last not in self.mine:
            self._level(Moment.AFTER_FORWARD)
            self.notes.append(Note(None, Moment.LOSS))
        self.window = Moment.BACKWARD_PEAK

    def _finish(self) -> None:
        """The schedule returns; a tied head's gradient is exchanged with the embedding's."""
        for name in list(self.held.names):
            if not (isinstance(name, tuple) and name[0] in ("input", "gradient")):
                self.held.drop(name)
        self._free()
        self._put(Letter(self.mine[0], Part.FINISH))
        self._level(Moment.AFTER_BACKWARD)

    # --- facts ------------------------------------------------------------------------------------------

    @cached_property
    def _is_one_f_one_b(self) -> bool:
        return self.layout.schedule is Schedule.ONE_F_ONE_B

    @cached_property
    def _warm_up(self) -> int:
        """Forward passes before the first backward: torch counts one more to its warm-up than the paper."""
        return min(self.micro_batches, self.layout.pp - self.pp_rank)

    # --- notes ------------------------------------------------------------------------------------------

    def _do(self, stage: int, doing: Doing) -> Progress:
        """A stage's pass; what the passes before it had left."""
        before = self.progress[stage]
        self._put(Letter(stage, doing, before))
        key = id(before), doing
        if key not in self.after:
            after = before.after(doing)
            self.after[key] = next((known for known in (before, *self.after.values()) if known == after), after)
        self.progress[stage] = self.after[key]
        return before

    def _free(self) -> None:
        for tensor in self.held.take():
            self._put(Letter(tensor.stage, Freed.INPUT_GRADIENT if tensor.is_gradient else Freed.OUTPUT))

    def _put(self, letter: Letter) -> None:
        self.notes.append(Note(letter, self.window))

    def _level(self, moment: Moment) -> None:
        self.notes.append(Note(None, self.window, moment))
