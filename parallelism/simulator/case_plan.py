"""A Case as a StepPlan: units from the operator ledger of each stage, their cost, every message where it is sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from parallelism.data.ddp import DDP
from parallelism.data.fsdp import FSDP
from parallelism.data.replicate import REPLICATE
from parallelism.pipeline.strategy import PIPELINE
from parallelism.schedules.ledgers import ledger_of_stages, stages_of_place
from parallelism.schedules.orders import schedule_order
from parallelism.schedules.stages import Stage, rank_of_stage, stages_of
from parallelism.simulator.kernel_time import Passes
from parallelism.simulator.plan import Cost, Issue, Part, StagePlan, StepPlan, Unit
from parallelism.simulator.unit_messages import (
    Seconds,
    hides_ring,
    once_a_step,
    pass_seconds,
    total_seconds,
)
from parallelism.simulator.unit_reductions import Exchange, ddp_exchanges, sharded_exchanges, zero_exchanges
from parallelism.simulator.update_cost import update_work
from parallelism.simulator.work import Moved, Work
from parallelism.traffic import clipping_messages, scaling_messages
from parallelism.zero.redundancy import ZERO_REDUNDANCY
from parallelism.zero.strategy import ZERO
from suite.case import Case
from suite.collectives import Collective
from suite.formats import formats_of
from suite.layout import Layout, Offload, Reduction
from suite.models.ledgers import ledger_of
from suite.operators import Ledger, Placed, Segment
from suite.parse import require
from suite.share import share_of
from suite.tape import Backend


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
    layout = case.layout
    require(
        layout.offload is Offload.NONE, f"layout.offload: {layout.offload} has no time yet; none is what can be timed"
    )
    builder = _Builder(case, pricing, seconds)
    stages = tuple(builder.stage(stage) for stage in stages_of(case))
    finish = tuple(builder.finish(place) for place in range(layout.pp))
    return StepPlan(
        orders=tuple(schedule_order(case, place) for place in range(layout.pp)),
        stages=stages,
        finish=finish,
        agree=sum(seconds(row) for row in clipping_messages(layout) if row.axis == "pp" and row.ranks > 1),
        gathers=Issue.BLOCKING if layout.is_deepspeed else Issue.STREAMS,
        reductions=Issue.BLOCKING if layout.is_deepspeed and layout.zero < 3 else Issue.STREAMS,
        gathers_ahead=_gathers_ahead(case),
        keeps_after_forward=layout.fsdp > 1 and layout.reshard_after_forward is False,
        reduces_each=_reduces_each(layout),
        slowdown=slowdown,
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
class _Builder:
    """Builds stages and ends of one case."""

    case: Case
    pricing: Pricing
    seconds: Seconds

    @cached_property
    def ledger(self) -> Ledger:
        """The whole model as the rank of each pipeline place holds it whose share is largest."""
        case = self.case
        backend = Backend.CPU if case.cluster.device == "cpu" else Backend.CUDA
        return ledger_of(
            case.model, case.workload, case.layout.recompute, formats_of(case).numerics, backend,
            share=share_of(case.layout, self.rank(0)),
        )  # fmt: skip

    def rank(self, place: int) -> int:
        """The rank that stands for a pipeline place: the first, or where a ring is not balanced the last of its
        context ranks, which attends to most."""
        layout = self.case.layout
        late = 0 if layout.is_balanced else (layout.cp - 1) * layout.tp
        return place * (layout.world_size // layout.pp) + late

    def stage(self, stage: Stage) -> StagePlan:
        """Its units; a send to the next stage, if that is on another rank."""
        layout = self.case.layout
        part = ledger_of_stages(self.case, self.ledger, (stage,))
        rank = self.rank(rank_of_stage(layout, stage.index))
        exchanges = self._exchanges(part, rank)
        known: dict[Segment, Unit] = {}
        units = []
        for placed, exchange in zip(part.segments, exchanges, strict=True):
            if placed.segment not in known:
                known[placed.segment] = self._unit(part, placed, rank)
            units.append(self._with(known[placed.segment], placed, exchange))
        return StagePlan(tuple(units), self._send(rank))

    def _unit(self, part: Ledger, placed: Placed, rank: int) -> Unit:
        """A segment's cost with the messages that its own operators wait for."""
        passes = self.pricing.passes(placed.segment)
        tensor = pass_seconds(self.case, part, placed, rank, Part.TENSOR, self.seconds)
        ring = pass_seconds(self.case, part, placed, rank, Part.CONTEXT, self.seconds)
        share = hides_ring(self.case)
        ring = ring.less(*(share * each for each in passes.attention))
        return Unit(
            placed.segment.name,
            forward=passes.forward + _blocking(tensor.forward, ring.forward),
            inputs=passes.inputs + _blocking(tensor.backward, ring.backward),
            weights=passes.weights + self._accumulation(placed.segment),
            rerun=passes.rerun + _blocking(tensor.rerun, ring.rerun),
        )

    def _accumulation(self, segment: Segment) -> Cost:
        """Adding to the gradients of earlier micro-batches, for an average one of them."""
        count, layout = self.case.workload.micro_batches, self.case.layout
        if count == 1 or (layout.fsdp > 1 and _reduces_each(layout)):
            return Cost()
        nbytes = 3 * formats_of(self.case).gradients.nbytes * segment.parameters
        return self.pricing.cost([Moved(nbytes)]).times((count - 1) / count) if nbytes else Cost()

    def _with(self, unit: Unit, placed: Placed, exchange: Exchange) -> Unit:
        """The unit where it stands, with what it gathers and reduces; torch's copies of both are compute."""
        return replace(
            unit,
            name=placed.prefix or unit.name,
            forward=unit.forward + self.pricing.cost(exchange.forward_copies),
            inputs=unit.inputs + self.pricing.cost(exchange.backward_copies),
            weights=unit.weights + self.pricing.cost(exchange.reduction_copies),
            gather=exchange.gather,
            reduce=exchange.reduce,
            is_kept=exchange.is_kept,
        )

    def _exchanges(self, part: Ledger, rank: int) -> list[Exchange]:
        """What each segment of a stage gathers and reduces, with its data-parallel strategy."""
        layout = self.case.layout
        if FSDP.is_used(layout):
            return sharded_exchanges(self.case, part, self.seconds)
        if ZERO.is_used(layout):
            return zero_exchanges(self.case, part, rank, self.seconds)
        if DDP.is_used(layout):
            return ddp_exchanges(self.case, part, rank, self.seconds)
        return [Exchange()] * len(part.segments)

    def _send(self, rank: int) -> float:
        if self.case.layout.pp == 1:
            return 0.0
        return self.seconds(PIPELINE.messages(self.case, self.ledger, rank)[0])

    def finish(self, place: int) -> Cost:
        """Clipping and update of all that a pipeline place holds, and what is sent once a step before or after."""
        case, layout = self.case, self.case.layout
        rank = self.rank(place)
        whole = ledger_of_stages(case, self.ledger, stages_of_place(case, place)) if layout.pp > 1 else self.ledger
        rows = {Part.TENSOR: once_a_step(case, whole, rank)}
        rows[Part.NORM] = [row for row in (*clipping_messages(layout), *scaling_messages(case)) if row.axis != "pp"]
        if PIPELINE.is_used(layout):
            rows[Part.PIPELINE] = list(PIPELINE.messages(case, whole, rank)[1:])
        if REPLICATE.is_used(layout):
            rows[Part.REDUCTION] = list(REPLICATE.messages(case, whole, rank))
        if ZERO_REDUNDANCY.is_used(layout):
            rows[Part.GATHER] = list(ZERO_REDUNDANCY.messages(case, whole, rank))
        if ZERO.is_used(layout):
            sent = [row for row in ZERO.messages(case, whole, rank) if _ends_step(layout, row.purpose)]
            rows[Part.GATHER] = [row for row in sent if row.collective is Collective.ALL_GATHER]
            rows[Part.NORM] += [row for row in sent if row.collective is not Collective.ALL_GATHER]
        blocking = tuple((part, total_seconds(found, self.seconds)) for part, found in rows.items())
        return self.pricing.cost(update_work(case, whole)) + Cost(blocking=blocking)


def _ends_step(layout: Layout, purpose: str) -> bool:
    """Is it DeepSpeed's for the update: norms, the overflow's flag, the new parameters?"""
    return not purpose.startswith(("average the gradients", "gather a module"))


def _blocking(tensor: float, context: float) -> Cost:
    sent: tuple[tuple[Part, float], ...] = ((Part.TENSOR, tensor), (Part.CONTEXT, context))
    return Cost(blocking=tuple(item for item in sent if item[1]))
