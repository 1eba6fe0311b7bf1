"""What torch's pipelines add to passes on this machine's CPU: the schedule, split backward passes, messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from parallelism.pipeline.strategy import joins_weights, stream_bytes
from parallelism.schedules.stages import rank_of_stage
from parallelism.simulator.cpu_messages import message_seconds
from parallelism.simulator.plan import NOTHING, Cost, Unit
from suite.case import Case
from suite.collectives import Collective, Message
from suite.hardware.calibration import Calibration
from suite.hardware.overheads import Overhead
from suite.operators import Ledger, Segment


@dataclass(frozen=True)
class PipelineCosts:
    """Looks up what a case's pipeline costs; nothing without one.

    Counted: torch's schedule around each pass; the walk through the graph before a backward pass for inputs, operator
    by operator, and a run of autograd for each weight after it; issuing messages, and gloo's threads. Not counted:
    agreeing on shapes in the first step.
    """

    case: Case
    calibration: Calibration

    @property
    def step(self) -> Cost:
        """The schedule's part of a step."""
        return self._host(Overhead.PIPELINE_STEP) if self.case.layout.pp > 1 else NOTHING

    @property
    def send(self) -> float:
        """Seconds on the way of a stream, or of its gradient back, without what both hosts do for it."""
        layout = self.case.layout
        if layout.pp == 1:
            return 0.0
        message = Message(Collective.SEND, "pp", layout.pp, stream_bytes(self.case), 1, "the stream", "", "")
        whole = message_seconds(self.calibration, message, self.case).seconds
        turns = max(1.0, self.case.cluster.per_node / self.calibration.machine.cores)
        return max(0.0, whole - 2 * turns * self._message())

    def stage(self, units: Sequence[Unit], part: Ledger, stage: int) -> list[Unit]:
        """A stage's units with all of it; `part` is the stage's ledger."""
        if self.case.layout.pp == 1:
            return list(units)
        found = [self._halved(unit, placed.segment, stage) for unit, placed in zip(units, part.segments, strict=True)]
        each = self._host(Overhead.PIPELINE_PASS) + Cost(self._neighbours(stage) * self._message())
        first = replace(found[0], forward=found[0].forward + each)
        found[0] = first
        if stage == 0 and self._splits(stage):  # torch leaves the first stage's whole backward pass to its weights'
            return [self._late(unit, each if unit is first else NOTHING) for unit in found]
        found[0] = replace(first, inputs=first.inputs + each)
        if self._splits(stage):
            base = self._host(Overhead.INPUTS), self._host(Overhead.WEIGHTS) + self._host(Overhead.PIPELINE_PASS)
            found[0] = replace(found[0], apart=(first.apart[0] + base[0], first.apart[1] + base[1]))
        return found

    def _splits(self, stage: int) -> bool:
        """Are its weights' gradients made apart from its inputs'?"""
        return self.case.layout.schedule.splits_backward and not joins_weights(self.case, stage)

    def _halved(self, unit: Unit, segment: Segment, stage: int) -> Unit:
        if joins_weights(self.case, stage):
            return replace(unit, inputs=unit.backward, weights=NOTHING)
        if not self._splits(stage):
            return unit
        operators = tuple(segment.operators())
        # torch's parameter groups: a weight and its bias, which one operator uses, are one
        groups, kernels = sum(bool(each.weights) for each in operators), sum(len(each.kernels) for each in operators)
        inputs = self._host(Overhead.INPUTS_PARAMETER, groups) + self._host(Overhead.INPUTS_OPERATOR, kernels)
        return replace(unit, apart=(inputs, self._host(Overhead.WEIGHTS_PARAMETER, groups)))

    def _late(self, unit: Unit, more: Cost) -> Unit:
        return replace(unit, inputs=NOTHING, weights=unit.backward + more, apart=(NOTHING, NOTHING))

    def _neighbours(self, stage: int) -> int:
        """Stages next to it on other ranks: each pass receives from one and sends to one."""
        layout = self.case.layout
        own = rank_of_stage(layout, stage)
        return sum(
            rank_of_stage(layout, other) != own for other in (stage - 1, stage + 1) if 0 <= other < layout.stages
        )

    def _message(self) -> float:
        """One rank's part of sending or receiving a stream."""
        each = self.calibration.overhead
        return each(Overhead.PIPELINE_MESSAGE) + stream_bytes(self.case) * each(Overhead.PIPELINE_BYTE)

    def _host(self, overhead: Overhead, count: float = 1.0) -> Cost:
        return Cost(count * self.calibration.overhead(overhead)) if count else NOTHING
