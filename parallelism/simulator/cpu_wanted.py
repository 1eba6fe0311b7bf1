"""What has to be measured on this machine for a case's strategies: messages, units, cores, engines, halves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from parallelism.schedules.ledgers import ledger_of_stages
from parallelism.schedules.stages import stages_of
from parallelism.simulator.cpu_messages import exchange_for
from parallelism.traffic import messages_of
from suite.case import Case
from suite.collectives import Collective, Message
from suite.formats import formats_of
from suite.hardware.collective_times import Exchange, distinct
from suite.hardware.overheads import ContextCore, ShardedUnit, TensorHalf, ZeroEngine
from suite.layout import Layout
from suite.operators import Ledger, Placed


@dataclass(frozen=True)
class Wanted:
    """What has to be measured for some cases, each once."""

    exchanges: tuple[Exchange, ...]
    cores: tuple[ContextCore, ...]
    units: tuple[ShardedUnit, ...]
    engines: tuple[ZeroEngine, ...]
    halves: tuple[TensorHalf, ...] = ()


def wanted_of(cases: Iterable[tuple[Case, Ledger]]) -> Wanted:
    """The measurements behind `cpu_strategies.strategy_costs` of every rank of these cases. A ledger is of the first
    rank's share of the whole model, every pipeline stage of it (memory.estimate.MemoryModel.ledger_of_share)."""
    exchanges: list[Exchange] = []
    cores: set[ContextCore] = set()
    units: set[ShardedUnit] = set()
    engines: set[ZeroEngine] = set()
    halves: set[TensorHalf] = set()
    for case, ledger in cases:
        layout = case.layout
        exchanges += [exchange_for(row, case) for row in _messages(case, ledger)]
        if layout.cp > 1:
            cores.add(core_of(case))
        if layout.tp > 1:
            halves.add(half_of(case))
        if layout.is_deepspeed:
            engines.add(engine_of(layout))
        if layout.fsdp > 1:
            parts = [part for stage in _stages(case, ledger) for part in units_of(stage)]
            units |= {unit_of(case, part, ranks) for part in parts for ranks in _gather_ranks(layout)}
    return Wanted(
        distinct(exchanges),
        tuple(sorted(cores)),
        tuple(sorted(units)),
        tuple(sorted(engines)),
        tuple(sorted(halves)),
    )


def _stages(case: Case, ledger: Ledger) -> list[Ledger]:
    """The model, or each of its pipeline stages."""
    if case.layout.pp == 1:
        return [ledger]
    return [ledger_of_stages(case, ledger, (stage,)) for stage in stages_of(case)]


def engine_of(layout: Layout) -> ZeroEngine:
    """The probe for DeepSpeed's part."""
    return ZeroEngine(layout.zero, layout.dp)


def _messages(case: Case, ledger: Ledger) -> list[Message]:
    """What is looked up by message: all but what units, cores and engines are measured with. Of the first rank of each
    place in the pipeline."""
    layout = case.layout
    firsts = range(0, layout.world_size, layout.world_size // layout.pp)
    rows = [row for rank in firsts for row in messages_of(case, ledger, rank)]
    return [row for row in rows if not _is_measured_apart(layout, row)]


def _is_measured_apart(layout: Layout, row: Message) -> bool:
    """Is it timed in a probe of its strategy's own?"""
    if row.axis == "fsdp":
        return row.collective is not Collective.ALL_REDUCE
    if row.axis == "dp" and layout.is_deepspeed:
        return is_module_gather(layout, row)
    return row.axis == "cp"


def is_module_gather(layout: Layout, row: Message) -> bool:
    """DeepSpeed's stage 3 gathers modules: the engine's probe holds it."""
    return layout.zero == 3 and row.collective is Collective.ALL_GATHER


def units_of(ledger: Ledger) -> list[tuple[Placed, ...]]:
    """FSDP2's units: each block, then everything else together."""
    rest = tuple(placed for placed in ledger.segments if not placed.prefix)
    return [*((placed,) for placed in ledger.segments if placed.prefix), *([rest] if rest else [])]


def _gather_ranks(layout: Layout) -> set[int]:
    """From how many ranks a unit is gathered."""
    again = layout.reshard_after_forward
    return {layout.shard_ranks} | (set() if isinstance(again, bool) else {again})


def unit_of(case: Case, part: tuple[Placed, ...], ranks: int) -> ShardedUnit:
    """The probe for a unit: its own parameters and the bytes that are gathered of them."""
    weights = [weight for placed in part for weight in placed.segment.weights if not weight.tied_to]
    element = formats_of(case).numerics.weights.nbytes
    return ShardedUnit(
        ranks=ranks,
        groups=max(1, case.cluster.per_node // ranks),
        parameters=len(weights),
        payload_bytes=sum(weight.elements for weight in weights) * element,
        divided=case.layout.tp > 1,
    )


def half_of(case: Case) -> TensorHalf:
    """The probe for half a block under tensor parallelism."""
    layout, workload, formats = case.layout, case.workload, formats_of(case)
    return TensorHalf(
        ranks=layout.tp,
        groups=max(1, case.cluster.per_node // layout.tp),
        sequences=workload.micro_batch,
        tokens=workload.seq_len // layout.cp,
        width=max(1, case.model.hidden * formats.numerics.compute.nbytes // 4),
        sequence_parallel=layout.sequence_parallel,
    )


def core_of(case: Case) -> ContextCore:
    """The probe for a block's attention core."""
    layout, workload, model = case.layout, case.workload, case.model
    return ContextCore(
        method=layout.context,
        kernel=workload.attention,
        balanced=layout.is_balanced,
        ranks=layout.cp,
        groups=max(1, case.cluster.per_node // layout.cp),
        sequences=workload.micro_batch,
        tokens=workload.seq_len // layout.cp,
        heads=model.heads // layout.tp,
        kv_heads=model.kv_heads // layout.tp,
        width=model.head_dim,
    )
