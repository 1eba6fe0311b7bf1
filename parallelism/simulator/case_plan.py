"""A Case as a StepPlan: units from the operator ledger of each stage, their cost, every message where it is sent."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Protocol, TypeVar

from parallelism.data.ddp import DDP
from parallelism.data.fsdp import FSDP
from parallelism.pipeline.strategy import PIPELINE, joins_weights
from parallelism.schedules.orders import Action, order_of
from parallelism.schedules.stages import head_is_copied, rank_of_stage, stages_of, stages_of_rank
from parallelism.simulator.kernel_time import Passes
from parallelism.simulator.plan import NOTHING, Cost, Issue, Part, StagePlan, StepPlan, Unit
from parallelism.simulator.plan_keys import PlanKeys, weights_key
from parallelism.simulator.stage_ledgers import StageLedgers
from parallelism.simulator.unit_messages import (
    Seconds,
    hides_ring,
    pass_seconds,
    total_seconds,
)
from parallelism.simulator.unit_reductions import Exchange, ddp_exchanges, sharded_exchanges, zero_exchanges
from parallelism.simulator.update_cost import update_work
from parallelism.simulator.update_messages import update_messages
from parallelism.simulator.work import Moved, Work
from parallelism.traffic import clipping_messages
from parallelism.zero.strategy import ZERO
from suite.case import Case
from suite.formats import formats_of
from suite.layout import Layout, Offload, Reduction
from suite.memo import Memo
from suite.models.ledgers import ledger_of
from suite.operators import Ledger, Placed, Segment
from suite.parse import require
from suite.share import share_of
from suite.tape import Backend

T = TypeVar("T")


class Pricing(Protocol):
    """What a machine's kernels cost."""

    def passes(self, segment: Segment) -> Passes:
        """A segment's passes for one micro-batch, without what it sends."""
        ...

    def cost(self, works: Iterable[Work]) -> Cost:
        """Kernels one after the other."""
        ...


def case_plan(case: Case, pricing: Pricing, seconds: Seconds, slowdown: float = 1.0) -> StepPlan:
    """The plan of one steady optimizer step of a case.

    `pricing` gives the cost of kernels, `seconds` what one call of a message takes, `slowdown` the time of compute
    beside communication over its time alone. Counted: every kernel of the ledger, what FSDP2, DDP and DeepSpeed copy,
    every message of parallelism.traffic, clipping and update. Not counted: the loader, logging, validation.
    Raises SpecError for what is offloaded to the host, which has no time here yet.
    """
    return Planner(case, pricing, seconds, slowdown).named_plan()


def _named(stage: StagePlan, part: Ledger) -> StagePlan:
    """With each block's own name, where equal ones have that of their kind."""
    units = zip(stage.units, part.segments, strict=True)
    return StagePlan(
        tuple(replace(unit, name=placed.prefix) if placed.prefix else unit for unit, placed in units), stage.send
    )


def _gathers_ahead(case: Case) -> tuple[int, int]:
    """Units whose gather starts early. On a GPU the host issues a unit's gather while the device still computes the one
    before, told to prefetch or not; on the CPU only what it is told to, or FSDP2's own one in backward."""
    layout = case.layout
    if layout.is_deepspeed:
        return 0, 0
    least = 0 if case.cluster.device == "cpu" else 1
    return max(least, layout.forward_prefetch), max(least, layout.backward_prefetch)


def _reduces_each(layout: Layout) -> bool:
    """DeepSpeed's stages 2 and 3 reduce after every micro-batch, torch where the layout says so."""
    return layout.zero >= 2 if layout.is_deepspeed else layout.reduction is Reduction.MICRO_BATCH


@dataclass(frozen=True)
class Planner:
    """Plans one case. What it works out serves all that is alike in the case and, with a `memo` that other cases of the
    same machine have, those too."""

    case: Case
    pricing: Pricing
    seconds: Seconds
    slowdown: float = 1.0
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    def plan(self, micro_batches: int | None = None) -> StepPlan:
        """As `case_plan`, but equal blocks are one Unit with the name of their kind, equal stages one StagePlan; with
        orders of so many micro-batches, by default the case's."""
        case, layout = self.case, self.case.layout
        require(
            layout.offload is Offload.NONE,
            f"layout.offload: {layout.offload} has no time yet; none is what can be timed",
        )
        count = case.workload.micro_batches if micro_batches is None else micro_batches
        return StepPlan(
            orders=self.orders(count),
            stages=self._stages(),
            finish=self._finishes(),
            agree=self._once("agree", self._agree),
            gathers=Issue.BLOCKING if layout.is_deepspeed else Issue.STREAMS,
            reductions=Issue.BLOCKING if layout.is_deepspeed and layout.zero < 3 else Issue.STREAMS,
            gathers_ahead=_gathers_ahead(case),
            keeps_after_forward=layout.fsdp > 1 and layout.reshard_after_forward is False,
            reduces_each=_reduces_each(layout),
            slowdown=self.slowdown,
        )

    def named_plan(self) -> StepPlan:
        """The plan, each block with its own name."""
        plan = self.plan()
        stages = (_named(stage, part) for stage, part in zip(plan.stages, self.parts.ledgers, strict=True))
        return replace(plan, stages=tuple(stages))

    def orders(self, micro_batches: int) -> tuple[tuple[Action, ...], ...]:
        """What each pipeline rank would run of so many micro-batches: one object for equal ones."""
        layout = self.case.layout
        return self.memo.once(
            ("orders", layout.schedule, layout.pp, layout.virtual_stages, micro_batches),
            lambda: tuple(order_of(layout, micro_batches, place) for place in range(layout.pp)),
        )

    def bare_units(self) -> tuple[Unit, ...]:
        """Of the whole model in forward order, without what data-parallel strategies gather, reduce and copy."""
        ledger = self.ledger
        name, rank = self._keys.unit, self.rank(0)
        return tuple([
            self.memo.once(("unit", name, placed.segment), partial(self._unit, ledger, placed, rank))
            for placed in ledger.segments
        ])  # fmt: skip

    @cached_property
    def _keys(self) -> PlanKeys:
        return PlanKeys(self.case, self.memo)

    @cached_property
    def ledger(self) -> Ledger:
        """The whole model as the rank of each pipeline place holds it whose share is largest."""
        case = self.case
        backend = Backend.CPU if case.cluster.device == "cpu" else Backend.CUDA
        facts = case.layout.recompute, formats_of(case).numerics, backend
        share = share_of(case.layout, self.rank(0))
        return self.memo.once(
            ("ledger", self._keys.micro_batch, facts, share),
            lambda: ledger_of(case.model, case.workload, *facts, share=share),
        )

    @cached_property
    def parts(self) -> StageLedgers:
        """What each stage holds."""
        case, ledger, memo = self.case, self.ledger, self.memo
        split = case.layout.stage_split, case.layout.stages
        stages = memo.once(("stages", self._keys.micro_batch, split), lambda: stages_of(case))
        key = "parts", memo.name(ledger), split, case.layout.pp == 1, head_is_copied(case)
        return memo.once(key, lambda: StageLedgers.of(case, ledger, stages))

    def _once(self, what: str, make: Callable[[], T], *key: Hashable) -> T:
        return self.memo.once((what, self._keys.stage, *key), make)

    def rank(self, place: int) -> int:
        """The rank that stands for a pipeline place: the first, or where a ring is not balanced the last of its
        context ranks, which attends to most."""
        layout = self.case.layout
        late = 0 if layout.is_balanced else (layout.cp - 1) * layout.tp
        return place * (layout.world_size // layout.pp) + late

    def _stages(self) -> tuple[StagePlan, ...]:
        kinds, found = self.parts.kinds, dict[int, StagePlan]()
        for index, kind in enumerate(kinds):
            if index == kind:
                joins, segments = joins_weights(self.case, index), self.parts.segments[index]
                found[kind] = self._once("stage", partial(self._plan_of, index, joins), self._name(segments), joins)
        return tuple([found[kind] for kind in kinds])

    def _name(self, segments: tuple[Segment, ...]) -> int:
        """A key for what a stage holds, equal in stages of other cases too."""
        memo = self.memo
        return memo.once(("segments", memo.name(segments)), lambda: memo.name(memo.same(segments)))

    def _plan_of(self, index: int, joins: bool) -> StagePlan:
        """A stage's units; a send to the next stage, if that is on another rank."""
        part = self.parts.ledgers[index]
        rank = self.rank(rank_of_stage(self.case.layout, index))
        key = "exchanges", self._keys.exchange, self._weights(index)
        units: dict[tuple[Segment, int], Unit] = {}
        line = []
        for placed, exchange in zip(
            part.segments, self.memo.once(key, lambda: self._exchanges(part, rank)), strict=True
        ):
            own = placed.segment, id(exchange)
            if own not in units:
                name = "unit", self._keys.unit, placed.segment
                unit = self.memo.once(name, partial(self._unit, part, placed, rank))
                unit = self._with(unit, exchange)
                units[own] = replace(unit, inputs=unit.backward, weights=NOTHING) if joins else unit
            line.append(units[own])
        return StagePlan(tuple(line), self._once("send", self._send))

    def _weights(self, stage: int) -> int:
        """A key for the weights of a stage."""
        segments, memo = self.parts.segments[stage], self.memo

        def key(segment: Segment) -> int:
            return memo.once(("weights", segment), lambda: memo.name(memo.same(weights_key(segment))))

        return memo.once(
            ("stage's weights", self._name(segments)), lambda: memo.name(memo.same(tuple(map(key, segments))))
        )

    def _unit(self, part: Ledger, placed: Placed, rank: int) -> Unit:
        """A segment's cost with the messages that its own operators wait for."""
        passes = self.pricing.passes(placed.segment)
        tensor = pass_seconds(self.case, part, placed, rank, Part.TENSOR, self.seconds)
        ring = pass_seconds(self.case, part, placed, rank, Part.CONTEXT, self.seconds)
        expert = pass_seconds(self.case, part, placed, rank, Part.EXPERT, self.seconds)
        share = hides_ring(self.case)
        ring = ring.less(*(share * each for each in passes.attention))
        return Unit(
            placed.segment.name,
            forward=passes.forward + _blocking(tensor.forward, ring.forward, expert.forward),
            inputs=passes.inputs + _blocking(tensor.backward, ring.backward, expert.backward),
            weights=passes.weights + self._accumulation(placed.segment),
            rerun=passes.rerun + _blocking(tensor.rerun, ring.rerun, expert.rerun),
        )

    def _accumulation(self, segment: Segment) -> Cost:
        """Adding to the gradients of earlier micro-batches, for an average one of them."""
        count, layout = self.case.workload.micro_batches, self.case.layout
        if count == 1 or (layout.fsdp > 1 and _reduces_each(layout)):
            return Cost()
        nbytes = 3 * formats_of(self.case).gradients.nbytes * segment.parameters
        return self.pricing.cost([Moved(nbytes)]).times((count - 1) / count) if nbytes else Cost()

    def _with(self, unit: Unit, exchange: Exchange) -> Unit:
        """The unit with what it gathers and reduces; torch's copies of both are compute."""
        return replace(
            unit,
            forward=unit.forward + self.pricing.cost(exchange.forward_copies),
            inputs=unit.inputs + self.pricing.cost(exchange.backward_copies),
            weights=unit.weights + self.pricing.cost(exchange.reduction_copies),
            gather=exchange.gather,
            reduce=exchange.reduce,
            is_kept=exchange.is_kept,
        )

    def _exchanges(self, part: Ledger, rank: int) -> list[Exchange]:
        """What each segment of a stage gathers and reduces, with its data-parallel strategy; equal ones one object."""
        layout = self.case.layout
        found = [Exchange()] * len(part.segments)
        if FSDP.is_used(layout):
            found = sharded_exchanges(self.case, part, self.seconds)
        elif ZERO.is_used(layout):
            found = zero_exchanges(self.case, part, rank, self.seconds)
        elif DDP.is_used(layout):
            found = ddp_exchanges(self.case, part, rank, self.seconds)
        known: dict[Exchange, Exchange] = {}
        return [known.setdefault(each, each) for each in found]

    def _agree(self) -> float:
        rows = clipping_messages(self.case.layout)
        return sum(self.seconds(row) for row in rows if row.axis == "pp" and row.ranks > 1)

    def _send(self) -> float:
        if self.case.layout.pp == 1:
            return 0.0
        return self.seconds(PIPELINE.messages(self.case, self.ledger, 0)[0])

    def _finishes(self) -> tuple[Cost, ...]:
        layout, memo = self.case.layout, self.memo
        key = "held", memo.name(self.parts), layout.pp, layout.schedule.is_v
        held = memo.once(key, lambda: [self._held(place) for place in range(layout.pp)])
        return tuple([
            memo.once(("finish", self._keys.finish, weights), partial(self._cost_of, place))
            for place, weights in enumerate(held)
        ])  # fmt: skip

    def _held(self, place: int) -> int:
        """A key for the weights of a place, and which ends of the pipeline it has."""
        held, stages = stages_of_rank(self.case.layout, place), self.parts.stages
        weights = tuple([self._weights(index) for index in held])
        return self.memo.name(self.memo.same((weights, stages[0].index in held, stages[-1].index in held)))

    def _cost_of(self, place: int) -> Cost:
        """Clipping and update of all that a pipeline place holds, and what is sent once a step before or after."""
        case, layout = self.case, self.case.layout
        rank, whole = self.rank(place), self.parts.held(stages_of_rank(layout, place))
        rows = update_messages(case, whole, rank)
        blocking = tuple((part, total_seconds(found, self.seconds)) for part, found in rows.items())
        return self.pricing.cost(update_work(case, whole)) + Cost(blocking=blocking)


def _blocking(tensor: float, context: float, expert: float) -> Cost:
    sent = (Part.TENSOR, tensor), (Part.CONTEXT, context), (Part.EXPERT, expert)
    return Cost(blocking=tuple(item for item in sent if item[1]))
