"""A training step on a pipeline rank: its actions in order, each a stage's pass, with what torch keeps between them.

Read off torch/distributed/pipelining (stage.py, schedules.py, _backward.py) and held to allocator traces:
- a stage receives every micro-batch's input, and its output's gradient, in buffers of their own, which stay;
- an output lives until the micro-batch's backward pass is over, and as long as a send or a variable holds it: to the
  end of the step, but under 1F1B until it sends the next;
- so does the gradient of an input, which the previous stage is sent;
- stages of one rank that follow each other (in V schedules) hand their tensors over into the buffers' places.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cached_property

from parallelism.schedules.gathers import STAGES_AHEAD, gathers_ahead, next_stages
from parallelism.schedules.ledgers import ledger_of_stages
from parallelism.schedules.orders import Action, Pass, schedule_order
from parallelism.schedules.stages import Stage, head_is_copied, stages_of, stages_of_rank

from memory.events import Event, Label, Phase, phase_of
from memory.pipeline_buffers import BUFFER
from memory.pipeline_finish import finishing
from memory.references import Passed, References
from memory.sharded_stage import ShardedStage
from memory.stage_passes import PlainStage, StagePasses
from memory.stage_walk import StageWalk
from memory.step import BACKWARD, FORWARD, LOSS, StepWalk, Stretch, reduced_gradients
from memory.units import exchange_of
from parallelism.pipeline.strategy import joins_weights, stream_bytes
from suite.case import Case
from suite.layout import Schedule
from suite.operators import Ledger
from suite.record import Moment
from suite.tape import Backend, Numerics


def walk_pipeline(case: Case, ledger: Ledger, pp_rank: int, numerics: Numerics, backend: Backend) -> StepWalk:
    """One step of a pipeline rank; `ledger` is of its share of the whole model."""
    return StepWalk(tuple(_PipelineRank(case, ledger, pp_rank, numerics, backend).walk()))


class _PipelineRank:
    def __init__(self, case: Case, ledger: Ledger, pp_rank: int, numerics: Numerics, backend: Backend) -> None:
        self.case = case
        self.numerics = numerics
        self.backend = backend
        self.layout = case.layout
        self.ledger = ledger
        self.pp_rank = pp_rank
        self.mine = stages_of_rank(self.layout, pp_rank)
        self.last = self.layout.stages - 1
        stages = stages_of(case)
        self.stages = {index: self._passes(stages[index]) for index in self.mine}
        self.held = References()
        self.window = FORWARD
        self.stretches: list[Stretch] = []
        self.near: set[int] = set()
        self.forwards = 0

    def walk(self) -> list[Stretch]:
        """The stretches of the step."""
        order = schedule_order(self.case, self.pp_rank)
        ends = {action.stage: place for place, action in enumerate(order)}
        for place, action in enumerate(order):
            self._gather_ahead(order, place, ends)
            if action.kind is Pass.FORWARD:
                self.forwards += 1
                self._forward(action)
            else:
                self._start_backward()
                self._backward(action)
            self._events(self.held.take())
            if ends[action.stage] == place:
                self._put(self.stages[action.stage].reduce())
        self._finish()
        return self.stretches

    def _passes(self, stage: Stage) -> StagePasses:
        """The passes of a stage. A head that is the embedding's own tensor has made its gradient before it."""
        case = self.case
        shares = case.model.tied and not head_is_copied(case)
        found = frozenset({"embedding.weight"} if shares and stage.has_embedding else ())
        own = ledger_of_stages(case, self.ledger, (stage,))
        if self.layout.fsdp == 1:
            return PlainStage(StageWalk(own, stage, found))
        gradients = reduced_gradients(self.numerics)
        exchange = exchange_of(case, self.numerics, self.backend)
        return ShardedStage(StageWalk(own, stage, found, gradients), self.layout, exchange, gradients)

    def _gather_ahead(self, order: Sequence[Action], place: int, ends: Mapping[int, int]) -> None:
        """What schedules of several stages a rank gather and release before an action."""
        if self.layout.fsdp == 1 or not gathers_ahead(self.layout):
            return
        coming = sum(end >= place for end in ends.values())
        near = next_stages(order, place, min(STAGES_AHEAD, coming))
        for stage in sorted(self.near - set(near)):
            self._put(self.stages[stage].release())
        for stage in near:
            if stage not in self.near:
                self._put(self.stages[stage].gather())
        self.near = set(near)

    # --- passes -----------------------------------------------------------------------------------------

    def _forward(self, action: Action) -> None:
        stage, item = action.stage, action.micro_batch
        body, loss = self.stages[stage].forward()
        self._put(body)
        if stage == self.last:
            if self.window is FORWARD:
                self._level(Moment.AFTER_FORWARD)
                self.window = LOSS
            self._put(loss)
            return
        output = Passed(self.stages[stage].walk.output)
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
        gradient = Passed(self.stages[stage].walk.input_gradient)
        if stage - 1 in self.mine:
            self._hand_over(("gradient", stage - 1, item), gradient)
        elif self._is_one_f_one_b:
            self.held.assign("bwd_sends", gradient)
            if self.forwards == self.case.workload.micro_batches:
                self.held.assign("send_work", gradient)
        else:
            self.held.assign(("send", gradient), gradient)

    def _derive(self, action: Action) -> None:
        """The part of a backward pass that is done now. The first stage, whose input needs no gradient, does all of it
        with its weights; a stage whose weights are joined to its inputs, with those."""
        stage = self.stages[action.stage]
        is_joined = joins_weights(self.case, action.stage)
        if action.kind is Pass.BACKWARD:
            self._put(stage.backward())
        elif is_joined or action.stage == 0:
            if action.kind is (Pass.INPUT if is_joined else Pass.WEIGHT):
                self._put(stage.backward())
        else:
            self._put(stage.inputs() if action.kind is Pass.INPUT else stage.weights())

    def _hand_over(self, name: Hashable, tensor: Passed) -> None:
        """Put a tensor in a buffer's place."""
        self.held.assign(name, tensor)
        self.held.events.append(_of(BUFFER, -stream_bytes(self.case)))

    def _start_backward(self) -> None:
        if self.window is BACKWARD:
            return
        if self.last not in self.mine:
            self._level(Moment.AFTER_FORWARD)
            self.stretches.append(Stretch(Phase(), LOSS))
        self.window = BACKWARD

    def _finish(self) -> None:
        """The schedule returns; a tied head's gradient is exchanged with the embedding's."""
        for name in list(self.held.names):
            if not (isinstance(name, tuple) and name[0] in ("input", "gradient")):
                self.held.drop(name)
        self._events(self.held.take())
        own = ledger_of_stages(self.case, self.ledger, tuple(each.walk.stage for each in self.stages.values()))
        for label in finishing(self.case, self.ledger, own, self.pp_rank):
            self._events([Event(label.unit, label), Event(-label.unit, label)])
        self._level(Moment.AFTER_BACKWARD)

    # --- facts ------------------------------------------------------------------------------------------

    @cached_property
    def _is_one_f_one_b(self) -> bool:
        return self.layout.schedule is Schedule.ONE_F_ONE_B

    @cached_property
    def _warm_up(self) -> int:
        """Forward passes before the first backward: torch counts one more to its warm-up than the paper."""
        return min(self.case.workload.micro_batches, self.layout.pp - self.pp_rank)

    # --- stretches --------------------------------------------------------------------------------------

    def _put(self, phase: Phase) -> None:
        if phase.events:
            self.stretches.append(Stretch(phase, self.window))

    def _events(self, events: Iterable[Event]) -> None:
        self._put(phase_of(events))

    def _level(self, moment: Moment) -> None:
        self.stretches.append(Stretch(Phase(), self.window, moment))


def _of(label: Label, nbytes: int) -> Event:
    return Event(nbytes, label)
