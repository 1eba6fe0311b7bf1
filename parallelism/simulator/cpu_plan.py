"""A case's step on this machine's CPU as a plan: operators, messages and overheads from a calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from parallelism.data.ddp import BUCKET_BYTES, DDP, FIRST_BUCKET_BYTES
from parallelism.schedules.ledgers import ledger_of_stages
from parallelism.schedules.orders import Action, Pass, schedule_order
from parallelism.schedules.stages import Stage, stages_of, stages_of_rank
from parallelism.simulator.cpu_costs import CpuCosts
from parallelism.simulator.cpu_messages import message_seconds
from parallelism.simulator.cpu_operators import untimed
from parallelism.simulator.cpu_pipeline import PipelineCosts
from parallelism.simulator.cpu_strategies import Added, strategy_costs
from parallelism.simulator.plan import Cost, Issue, Part, StagePlan, StepPlan, Unit
from suite.case import Case
from suite.collectives import Collective, Message
from suite.formats import formats_of
from suite.hardware.calibration import Calibration
from suite.hardware.overheads import Overhead
from suite.layout import Reduction
from suite.operators import Ledger, Placed, Segment
from suite.parse import require


def cpu_plan(case: Case, ledger: Ledger, calibration: Calibration) -> StepPlan:
    """The step of a case whose ranks share this machine; `ledger` is of a rank's share of the whole model.

    Counted: what CpuCosts, StrategyCosts and PipelineCosts count, DDP's buckets and hooks, clipping's norm.
    Raises SpecError for what the calibration lacks, and for what is not timed (cpu_operators.untimed).
    """
    reason = untimed(case)
    require(not reason, reason)
    return _Planner(case, ledger, CpuCosts(case, calibration)).plan()


def interpolated(case: Case, ledger: Ledger, calibration: Calibration) -> tuple[str, ...]:
    """What the plan takes from operators that were measured at other shapes, in words; nothing where all were exact."""
    costs = CpuCosts(case, calibration)
    _Planner(case, ledger, costs).plan()
    return tuple(sorted(costs.bases))


@dataclass(frozen=True)
class _Planner:
    case: Case
    ledger: Ledger
    costs: CpuCosts

    def plan(self) -> StepPlan:
        """All of it."""
        layout, crowd = self.case.layout, self.costs.crowd
        cores, is_each = self.costs.calibration.machine.cores, layout.reduction is Reduction.MICRO_BATCH
        finish = [self._finish(place) for place in range(layout.pp)]
        agree = max(dict(cost.blocking).get(Part.NORM, 0.0) for cost in finish)
        return StepPlan(
            orders=tuple(self._order(place) for place in range(layout.pp)),
            stages=tuple(self._stage(stage) for stage in stages_of(self.case)),
            finish=tuple(_without(cost, Part.NORM) if agree else cost for cost in finish),
            agree=agree,
            gathers=Issue.BLOCKING,
            # DDP's last buckets are waited for at the end of every backward pass that reduces
            reductions=Issue.BLOCKING if layout.fsdp > 1 or is_each else Issue.STREAMS,
            gathers_ahead=(0, 0),
            reduces_each=is_each,
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

    def _part(self, stages: tuple[Stage, ...]) -> Ledger:
        return ledger_of_stages(self.case, self.ledger, stages) if self.case.layout.pp > 1 else self.ledger

    def _stage(self, stage: Stage) -> StagePlan:
        part = self._part((stage,))
        added = strategy_costs(self.case, self.costs.calibration, part).segments
        units = [self._unit(placed, extra) for placed, extra in zip(part.segments, added, strict=True)]
        units[0] = replace(units[0], forward=units[0].forward + Cost(self.costs.micro_batch() + self._hooks(part)))
        if DDP.is_used(self.case.layout):
            units = self._reduced(units, part)
        return StagePlan(tuple(self._pipeline.stage(units, part, stage.index)), self._pipeline.send)

    def _unit(self, placed: Placed, added: Added) -> Unit:
        unit = self._alike(placed.segment)
        return replace(
            unit,
            name=placed.prefix or unit.name,
            forward=unit.forward + added.forward,
            inputs=unit.inputs + added.backward,
            rerun=unit.rerun + added.rerun if placed.segment.recomputed else unit.rerun,
            gather=added.gather,
            reduce=added.reduce,
            is_kept=added.is_kept,
        )

    @cached_property
    def _alike(self) -> Callable[[Segment], Unit]:
        return cache(self.costs.unit)

    def _hooks(self, part: Ledger) -> float:
        """DDP's part of a micro-batch."""
        if not DDP.is_used(self.case.layout):
            return 0.0
        each = self.costs.calibration.overhead
        return each(Overhead.DDP_STEP) + _parameters(part) * each(Overhead.DDP_PARAMETER)

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
            replace(unit, reduce=sum(self._seconds(self._all_reduce(payload)) for payload in payloads))
            for unit, payloads in zip(units, found, strict=True)
        ]

    def _all_reduce(self, payload: int) -> Message:
        ranks = self.case.layout.replica_ranks
        return Message(Collective.ALL_REDUCE, "dp", ranks, payload, 1, "average the gradients", "", "")

    @property
    def _pipeline(self) -> PipelineCosts:
        return PipelineCosts(self.case, self.costs.calibration)

    def _seconds(self, message: Message) -> float:
        return message_seconds(self.costs.calibration, message, self.case).seconds

    def _finish(self, place: int) -> Cost:
        layout, calibration = self.case.layout, self.costs.calibration
        stages = stages_of(self.case)
        own = self._part(tuple(stages[index] for index in stages_of_rank(layout, place)))
        cost = self.costs.finish(own) + strategy_costs(self.case, calibration, own).finish + self._pipeline.step
        if DDP.is_used(layout):
            often = self.case.workload.micro_batches if layout.reduction is Reduction.MICRO_BATCH else 1
            copied = _parameters(own) * calibration.overhead(Overhead.DDP_REDUCE_PARAMETER)
            cost = cost + Cost(often * (calibration.overhead(Overhead.DDP_REDUCE) + copied))
        return cost


def _without(cost: Cost, part: Part) -> Cost:
    return replace(cost, blocking=tuple(each for each in cost.blocking if each[0] is not part))


def _parameters(ledger: Ledger) -> int:
    """Tensors, a tied one once."""
    return sum(not weight.tied_to for placed in ledger.segments for weight in placed.segment.weights)
