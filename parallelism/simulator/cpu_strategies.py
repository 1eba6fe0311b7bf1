"""What strategies add to a rank's operators on this machine's CPU: collectives that it waits for, and host work.

gloo's ranks wait for every collective, so what they cost adds up; with more ranks than cores the figures, measured with
all ranks at work, hold their waiting for a core already. `Added` is in the engine's seconds, which it stretches for
ranks that share cores: measured ones are divided by that stretch beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from parallelism.data.fsdp import sharded_units
from parallelism.data.replicate import REPLICATE
from parallelism.simulator.cpu_messages import message_seconds
from parallelism.simulator.cpu_wanted import core_of, engine_of, half_of, is_module_gather, unit_of, units_of
from parallelism.simulator.plan import NOTHING, Cost, Part
from parallelism.tensor.strategy import TENSOR
from parallelism.tensor.traffic import ONCE_A_STEP
from parallelism.traffic import clipping_messages, scaling_messages
from parallelism.zero.redundancy import ZERO_REDUNDANCY
from parallelism.zero.strategy import ZERO
from parallelism.zero.traffic import modules_of
from suite.case import Case
from suite.collectives import Collective, Message
from suite.formats import formats_of
from suite.hardware.calibration import Calibration
from suite.hardware.collective_times import CollectiveTimes, Exchange, Form
from suite.hardware.overheads import HALF_WEIGHTS, Engine, Kept, Overhead, ShardedUnit, name_of
from suite.layout import Layout, RecomputeKind
from suite.operators import Ledger, Operator, Placed, Region, Split

#: what DeepSpeed's stages send each micro-batch
_REDUCTIONS = (
    frozenset[Collective](),
    frozenset[Collective](),
    frozenset({Collective.ALL_REDUCE}),
    frozenset({Collective.REDUCE_SCATTER}),
)


#: FSDP2's hooks, gathers and reductions: of a unit, of each of its parameters
_FSDP = (
    (Overhead.FSDP_HOOKS_UNIT, Overhead.FSDP_HOOKS_PARAMETER),
    (Overhead.FSDP_GATHER_UNIT, Overhead.FSDP_GATHER_PARAMETER),
    (Overhead.FSDP_REDUCE_UNIT, Overhead.FSDP_REDUCE_PARAMETER),
)


@dataclass(frozen=True, slots=True)
class Added:
    """To one segment, each micro-batch; `gather` and `reduce` as a Unit has them. Where `has_core`, the attention
    operators' own time is in it."""

    forward: Cost = NOTHING
    backward: Cost = NOTHING
    rerun: Cost = NOTHING
    gather: float = 0.0
    reduce: float = 0.0
    is_kept: bool = False
    has_core: bool = False

    def __add__(self, other: Added) -> Added:
        return Added(
            self.forward + other.forward,
            self.backward + other.backward,
            self.rerun + other.rerun,
            self.gather + other.gather,
            self.reduce + other.reduce,
            self.is_kept or other.is_kept,
            self.has_core or other.has_core,
        )


@dataclass(frozen=True)
class StrategyCosts:
    """What strategies add to a step of one rank: to each segment of its ledger, in order, and after all gradients."""

    segments: tuple[Added, ...]
    finish: Cost


def strategy_costs(case: Case, calibration: Calibration, ledger: Ledger, rank: int = 0) -> StrategyCosts:
    """What the case's tensor, context and sharded data parallelism, DeepSpeed and checkpointing add to `rank`'s step;
    `ledger` is what it holds (memory.estimate.MemoryModel.ledger_of_rank).

    Not counted: DDP's buckets and the pipeline's sends. Taken as not hidden: FSDP2's prefetches, whose
    transfers need the cores that compute does. Raises SpecError for what was not measured.
    """
    costs = _Costs(case, calibration, rank)
    segments = [_Segment(costs, ledger, index).added() for index in range(len(ledger.segments))]
    if case.layout.fsdp > 1:
        segments = [one + other for one, other in zip(segments, costs.sharding(ledger), strict=True)]
    finish = costs.finish(ledger)
    if case.layout.is_deepspeed:
        parts, last = costs.engine(ledger)
        segments, finish = [one + other for one, other in zip(segments, parts, strict=True)], finish + last
    return StrategyCosts(tuple(segments), finish)


@dataclass(frozen=True)
class _Costs:
    """Looks measurements up for one case."""

    case: Case
    calibration: Calibration
    rank: int

    @property
    def alone(self) -> float:
        """The engine's seconds for one that was measured with all ranks at work."""
        return min(1.0, self.calibration.machine.cores / self.case.cluster.per_node)

    def messages(self, rows: Iterable[Message]) -> float:
        """Seconds of all calls."""
        return self.alone * sum(
            row.count * message_seconds(self.calibration, row, self.case).seconds
            for row in rows
            if row.ranks > 1 and row.count
        )

    def host(self, overhead: str, count: float = 1.0) -> Cost:
        """Host work, which on a CPU takes the time of operators."""
        return Cost(compute=count * self.calibration.overhead(overhead)) if count else NOTHING

    def measured(self, part: Part, name: str) -> Cost:
        """A figure that was measured with all ranks at work."""
        return Cost(blocking=((part, self.alone * self.calibration.overhead(name)),))

    def sharding(self, ledger: Ledger) -> list[Added]:
        """FSDP2's units: each block, and the rest, which is gathered with the first segment and stays whole."""
        layout, parts = self.case.layout, units_of(ledger)
        blocks = [index for index, placed in enumerate(ledger.segments) if placed.prefix]
        rest = [index for index, placed in enumerate(ledger.segments) if not placed.prefix]
        found = [Added() for _ in ledger.segments]
        for place, part in zip((*blocks, *rest[:1]), parts, strict=True):
            is_root = not part[0].prefix
            kept, freed, reduced = self._unit(unit_of(self.case, part, layout.shard_ranks))
            gather, hooks = max(0.0, freed - kept), max(0.0, 2 * kept - freed)
            again = self._gathered_again(part) if not is_root else 0.0
            stays = is_root or layout.reshard_after_forward is not True
            # a pipeline keeps it to the end of the step; else it is gathered in each micro-batch's forward pass
            is_blocking = stays and layout.pp == 1
            found[place] = Added(
                forward=Cost(hooks / 2, 0.0, ((Part.GATHER, gather if is_blocking else 0.0),)),
                backward=Cost(hooks / 2, 0.0, ((Part.GATHER, again),)),
                gather=0.0 if is_blocking else gather,
                reduce=max(0.0, reduced - freed) + self._replicas(ledger, part),
                is_kept=stays and not is_blocking,
            )
        return found

    def _unit(self, unit: ShardedUnit) -> tuple[float, float, float]:
        """Seconds of a unit kept, freed and reduced: as measured at its own size, else added up from the host's work
        for a unit and its parameters and from the collectives."""
        if unit.name(Kept.KEPT) in self.calibration.overheads:
            kept, freed, reduced = (self.alone * self.calibration.overhead(unit.name(kind)) for kind in Kept)
            return kept, freed, reduced
        hooks, gather, reduce = (self._host_of(unit, *names) for names in _FSDP)
        gather += self._exchanged(unit, Collective.ALL_GATHER)
        reduce += self._exchanged(unit, Collective.REDUCE_SCATTER)
        return hooks + gather, hooks + 2 * gather, hooks + 2 * gather + reduce

    def _host_of(self, unit: ShardedUnit, base: Overhead, each: Overhead) -> float:
        seconds = self.calibration.overhead
        return seconds(name_of(base, unit.divided)) + unit.parameters * seconds(name_of(each, unit.divided))

    def _exchanged(self, unit: ShardedUnit, collective: Collective) -> float:
        return self._seconds(Exchange(collective, Form.DIRECT, unit.ranks, unit.groups, unit.payload_bytes))

    def _seconds(self, exchange: Exchange) -> float:
        return self.alone * CollectiveTimes(self.calibration.collectives).seconds(exchange).seconds

    def _gathered_again(self, part: tuple[Placed, ...]) -> float:
        """Backward's gather of a block that forward left in parts, among fewer ranks than hold it."""
        ranks = self.case.layout.reshard_after_forward
        if isinstance(ranks, bool):
            return 0.0
        kept, freed, _ = self._unit(unit_of(self.case, part, ranks))
        return max(0.0, freed - kept)

    def _replicas(self, ledger: Ledger, part: tuple[Placed, ...]) -> float:
        """HSDP: the all-reduce of one unit's reduced gradients."""
        replicas = self.case.layout.replica_ranks
        if replicas == 1:
            return 0.0
        units = sharded_units(replace(ledger, segments=part), self.case.layout)
        payload = sum(unit.elements // unit.ranks for unit in units) * formats_of(self.case).reduced.nbytes
        groups = max(1, self.case.cluster.per_node // replicas)
        return self._seconds(Exchange(Collective.ALL_REDUCE, Form.DIRECT, replicas, groups, payload))

    def engine(self, ledger: Ledger) -> tuple[list[Added], Cost]:
        """DeepSpeed's engine: each segment's modules, the messages of a micro-batch and the step's. Stage 3's gathers
        are in its modules' figures; a rerun block gathers again all but its last module."""
        layout, batches = self.case.layout, self.case.workload.micro_batches
        assert ZERO.messages is not None
        rows = [row for row in ZERO.messages(self.case, ledger, self.rank) if not is_module_gather(layout, row)]
        each = [row for row in rows if row.count % batches == 0 and row.collective in _REDUCTIONS[layout.zero]]
        part = {kind: self.alone * self.calibration.overhead(engine_of(layout).name(kind)) for kind in Engine}
        found, modules = [], 0
        for placed in ledger.segments:
            count = len(modules_of(placed.segment))
            modules += count
            half = Cost(blocking=((Part.GATHER, part[Engine.MODULE] * count / 2),))
            is_rerun = placed.prefix and layout.recompute.covers_block(int(placed.prefix.rpartition(".")[2]))
            again = part[Engine.RERUN] * (count - 1) if is_rerun else 0.0
            found.append(Added(half, half, Cost(blocking=((Part.GATHER, again),))))
        said = Cost(part[Engine.MICRO_BATCH], 0.0, ((Part.REDUCTION, self.messages(each) / batches),))
        found[0] = found[0] + Added(backward=said)
        once = self.messages(row for row in rows if row not in each)
        host = part[Engine.STEP] + part[Engine.MODULE_STEP] * modules
        return found, Cost(host, 0.0, ((Part.REDUCTION, once),))

    def finish(self, ledger: Ledger) -> Cost:
        """What comes after the last backward pass: gradients that no wrapper reduces, the norm, and the DTensors'
        part of clipping and update."""
        case, layout = self.case, self.case.layout
        once = [row for row in _tensor_messages(case, ledger, self.rank) if row.purpose == ONCE_A_STEP]
        if REPLICATE.is_used(layout) and REPLICATE.messages is not None:
            once += REPLICATE.messages(case, ledger, self.rank)
        if ZERO_REDUNDANCY.is_used(layout) and ZERO_REDUNDANCY.messages is not None:
            once += ZERO_REDUNDANCY.messages(case, ledger, self.rank)
        agreed = [*clipping_messages(layout), *scaling_messages(case)]
        wrapped = _wrapped(layout, ledger)
        host = self.host(Overhead.DIVIDED_CLIP, wrapped) + self.host(Overhead.DIVIDED_UPDATE, wrapped)
        return host + Cost(blocking=((Part.REDUCTION, self.messages(once)), (Part.NORM, self.messages(agreed))))


@dataclass(frozen=True)
class _Segment:
    """One segment's part, but for FSDP2's."""

    costs: _Costs
    ledger: Ledger
    index: int

    @property
    def placed(self) -> Placed:
        """The segment where it stands."""
        return self.ledger.segments[self.index]

    def added(self) -> Added:
        """Tensor and context parallelism, and checkpointing."""
        return self._tensor() + self._context() + self._checkpointing()

    def _tensor(self) -> Added:
        case, layout, costs = self.costs.case, self.costs.case.layout, self.costs
        if layout.tp == 1:
            return Added()
        own = replace(self.ledger, segments=(self.placed,))
        rows = [row for row in _tensor_messages(case, own, costs.rank) if row.purpose != ONCE_A_STEP]
        reruns = [row for row in rows if "rerun" in row.purpose]
        gradients = [row for row in rows if "gradient" in row.purpose]
        forward = [row for row in rows if row not in reruns and row not in gradients]
        weights = sum(weight.split is not Split.NONE for weight in self.placed.segment.weights)
        parts = (forward, gradients, reruns)
        halves = self._halves(*parts)
        times = halves or [self._each(part) for part in parts]
        said = [Cost(blocking=((Part.TENSOR, seconds),)) for seconds in times]
        half = costs.host(Overhead.DIVIDED_USE, (weights - 2 * HALF_WEIGHTS if halves else weights) / 2)
        again = 1 - 1 / case.workload.micro_batches
        added = costs.host(Overhead.DIVIDED_ADD, weights * again)
        return Added(said[0] + half, said[1] + half + added, said[2] + half if reruns else NOTHING)

    def _halves(self, *parts: list[Message]) -> list[float] | None:
        """Seconds of a block's forward and backward pass and its rerun, as its halves were measured at their own
        shape; a rerun's by its share of the calls. None where they were not, and for what is no block."""
        half, costs = half_of(self.costs.case), self.costs
        if not self.placed.prefix or half.name(whole=True) not in costs.calibration.overheads:
            return None
        forward, whole = (2 * costs.alone * costs.calibration.overhead(half.name(which)) for which in (False, True))
        calls = [sum(row.count for row in part) for part in parts]
        return [forward, max(0.0, whole - forward), forward * calls[2] / calls[0]]

    def _each(self, rows: list[Message]) -> float:
        """Seconds of a micro-batch."""
        return self.costs.messages(rows) / self.costs.case.workload.micro_batches

    def _context(self) -> Added:
        case, costs = self.costs.case, self.costs
        if case.layout.cp == 1 or not self.placed.prefix:
            return Added()
        core = core_of(case)
        forward = costs.measured(Part.CONTEXT, core.name(whole=False))
        whole = costs.measured(Part.CONTEXT, core.name(whole=True))
        backward = Cost(blocking=((Part.CONTEXT, max(0.0, whole.seconds - forward.seconds)),))
        is_rerun = any(isinstance(part, Region) for part in self.placed.segment.body)
        return Added(forward, backward, forward if is_rerun else NOTHING, has_core=True)

    def _checkpointing(self) -> Added:
        regions = [part for part in self.placed.segment.body if isinstance(part, Region)]
        is_selective = self.costs.case.layout.recompute.kind is RecomputeKind.SELECTIVE_OP
        names = (Overhead.REGION, Overhead.REGION_OPERATOR)
        if is_selective:
            names = (Overhead.SELECTIVE_REGION, Overhead.SELECTIVE_OPERATOR)
        rerun = NOTHING
        for region in regions:
            kernels = sum(len(operator.kernels) for operator in _operators(region))
            rerun = rerun + self.costs.host(names[0]) + self.costs.host(names[1], kernels)
        return Added(rerun=rerun)


def _operators(region: Region) -> list[Operator]:
    return [operator for part in region.body for operator in (_operators(part) if isinstance(part, Region) else [part])]


def _tensor_messages(case: Case, ledger: Ledger, rank: int) -> tuple[Message, ...]:
    assert TENSOR.messages is not None
    return tuple(TENSOR.messages(case, ledger, rank)) if case.layout.tp > 1 else ()


def _wrapped(layout: Layout, ledger: Ledger) -> int:
    """Parameters that are DTensors on this rank: FSDP2's all are, else those that tensor parallelism divides."""
    weights = [weight for placed in ledger.segments for weight in placed.segment.weights if not weight.tied_to]
    if layout.fsdp > 1:
        return len(weights)
    return sum(weight.split is not Split.NONE for weight in weights) if layout.tp > 1 else 0
