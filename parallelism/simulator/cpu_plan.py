"""A case's step on this machine's CPU as a plan: operators from a calibration, messages from whoever times them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from parallelism.data.ddp import BUCKET_BYTES, DDP, FIRST_BUCKET_BYTES
from parallelism.pipeline.strategy import stream_bytes
from parallelism.schedules.ledgers import ledger_of_stages
from parallelism.schedules.orders import Action, Pass, schedule_order
from parallelism.schedules.stages import Stage, stages_of, stages_of_rank
from parallelism.simulator.cpu_costs import CpuCosts
from parallelism.simulator.plan import Cost, Issue, StagePlan, StepPlan, Unit
from parallelism.strategies import strategies_of
from parallelism.traffic import clipping_messages
from suite.case import Case
from suite.collectives import Collective, Message
from suite.formats import formats_of
from suite.hardware.calibration import Calibration
from suite.layout import Reduction
from suite.operators import Ledger
from suite.parse import require

#: seconds of one call of a message
MessageSeconds = Callable[[Message], float]
#: strategies whose step this can write down
PLANNED = frozenset({"pipeline", "checkpointing", "ddp"})


def cpu_plan(case: Case, ledger: Ledger, calibration: Calibration, seconds: MessageSeconds) -> StepPlan:
    """The step of a case whose ranks share this machine; `ledger` is of a rank's share of the whole model.

    Counted: what CpuCosts counts, DDP's buckets, the pipeline's sends, clipping's norm. Not counted yet: what DDP's
    hooks and torch's schedules do on the host.
    Raises SpecError for a layout that is not planned, and for what the calibration lacks.
    """
    unplanned = [strategy.name for strategy in strategies_of(case.layout) if strategy.name not in PLANNED]
    require(not unplanned, f"layout: {', '.join(unplanned)}: a step on the CPU is not simulated with it yet")
    return _Planner(case, ledger, CpuCosts(case, calibration), seconds).plan()


@dataclass(frozen=True)
class _Planner:
    case: Case
    ledger: Ledger
    costs: CpuCosts
    seconds: MessageSeconds

    def plan(self) -> StepPlan:
        """All of it."""
        layout, crowd = self.case.layout, self.costs.crowd
        cores = self.costs.calibration.machine.cores
        return StepPlan(
            orders=tuple(self._order(place) for place in range(layout.pp)),
            stages=tuple(self._stage(stage) for stage in stages_of(self.case)),
            finish=tuple(self._finish(place) for place in range(layout.pp)),
            agree=sum(self.seconds(message) for message in clipping_messages(layout) if message.ranks > 1),
            reductions=Issue.STREAMS,
            reduces_each=layout.reduction is Reduction.MICRO_BATCH,
            cores=(float(cores), float(crowd.threads)),
            ranks_a_place=layout.world_size // layout.pp,
        )

    def _order(self, place: int) -> tuple[Action, ...]:
        """As scheduled; without a pipeline each micro-batch forward and backward."""
        if self.case.layout.pp > 1:
            return schedule_order(self.case, place)
        return tuple(
            Action(0, kind, index)
            for index in range(self.case.workload.micro_batches)
            for kind in (Pass.FORWARD, Pass.BACKWARD)
        )

    def _stage(self, stage: Stage) -> StagePlan:
        part = ledger_of_stages(self.case, self.ledger, (stage,)) if self.case.layout.pp > 1 else self.ledger
        alike = {segment: self.costs.unit(segment) for segment in part.counts}
        units = [replace(alike[each.segment], name=each.prefix or each.segment.name) for each in part.segments]
        units[0] = replace(units[0], forward=units[0].forward + Cost(self.costs.micro_batch()))
        if DDP.is_used(self.case.layout):
            units = self._reduced(units, part)
        return StagePlan(tuple(units), self._send)

    def _reduced(self, units: Sequence[Unit], part: Ledger) -> list[Unit]:
        """Each unit with the all-reduces of the buckets that its gradients complete, filled from the last weight to
        the first (parallelism/data/ddp.py); the first unit with what is left over."""
        layout, element = self.case.layout, formats_of(self.case).gradients.nbytes
        limit, filled, closed = layout.bucket_mib * 2**20, 0, 0
        found: list[list[int]] = [[] for _ in units]
        for place in reversed(range(len(units))):
            for weight in reversed(part.segments[place].segment.weights):
                filled += 0 if weight.tied_to else weight.elements * element
                if filled >= (limit or (BUCKET_BYTES if closed else FIRST_BUCKET_BYTES)):
                    found[place].append(filled)
                    filled, closed = 0, closed + 1
        if filled:
            found[0].append(filled)
        return [
            replace(unit, reduce=sum(self.seconds(self._all_reduce(payload)) for payload in payloads))
            for unit, payloads in zip(units, found, strict=True)
        ]

    def _all_reduce(self, payload: int) -> Message:
        ranks = self.case.layout.replica_ranks
        return Message(Collective.ALL_REDUCE, "dp", ranks, payload, 1, "average the gradients", "", "")

    @cached_property
    def _send(self) -> float:
        """The stream to the next stage, or its gradient back."""
        ranks = self.case.layout.pp
        if ranks == 1:
            return 0.0
        return self.seconds(Message(Collective.SEND, "pp", ranks, stream_bytes(self.case), 1, "the stream", "", ""))

    def _finish(self, place: int) -> Cost:
        stages = tuple(stages_of(self.case)[index] for index in stages_of_rank(self.case.layout, place))
        own = ledger_of_stages(self.case, self.ledger, stages) if self.case.layout.pp > 1 else self.ledger
        return self.costs.finish(own)
