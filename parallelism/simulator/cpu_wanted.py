"""What has to be measured on this machine for a case's strategies: messages, FSDP2's units, cores, engines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from parallelism.base import Strategy
from parallelism.data.fsdp import FSDP
from parallelism.simulator.cpu_messages import exchange_for
from parallelism.strategies import strategies_of
from parallelism.traffic import clipping_messages, scaling_messages
from parallelism.zero.strategy import ZERO
from suite.case import Case
from suite.collectives import Collective, Message
from suite.formats import formats_of
from suite.hardware.collective_times import Exchange, distinct
from suite.hardware.overheads import ContextCore, ShardedUnit, ZeroEngine
from suite.layout import Layout
from suite.operators import Ledger, Placed


@dataclass(frozen=True)
class Wanted:
    """What has to be measured for some cases, each once."""

    exchanges: tuple[Exchange, ...]
    cores: tuple[ContextCore, ...]
    units: tuple[ShardedUnit, ...]
    engines: tuple[ZeroEngine, ...]


def wanted_of(cases: Iterable[tuple[Case, Ledger]]) -> Wanted:
    """The measurements behind `strategy_costs` of these cases; a ledger is what the case's rank holds."""
    exchanges: list[Exchange] = []
    cores: list[ContextCore] = []
    units: list[ShardedUnit] = []
    engines: set[ZeroEngine] = set()
    for case, ledger in cases:
        exchanges += [exchange_for(row, case) for row in _all_messages(case, ledger) if row.ranks > 1 and row.count]
        if case.layout.cp > 1:
            cores.append(core_of(case))
        if case.layout.is_deepspeed:
            engines.add(engine_of(case.layout))
        if case.layout.fsdp > 1:
            parts = units_of(ledger)
            units += [unit_of(case, part, ranks) for part in parts for ranks in gather_ranks(case.layout)]
    return Wanted(distinct(exchanges), tuple(sorted(set(cores))), tuple(sorted(set(units))), tuple(sorted(engines)))


def engine_of(layout: Layout) -> ZeroEngine:
    """The probe for DeepSpeed's part."""
    return ZeroEngine(layout.zero, layout.dp)


def _all_messages(case: Case, ledger: Ledger) -> list[Message]:
    """What is looked up by message: all but what units, cores and engines are measured with."""
    rows: list[Message] = []
    for strategy in strategies_of(case.layout):
        if strategy.messages is not None and strategy.axis != "cp":
            found = strategy.messages(case, ledger, 0)
            rows += [row for row in found if not is_probed(case, strategy, row)]
    return [*rows, *clipping_messages(case.layout), *scaling_messages(case)]


def is_probed(case: Case, strategy: Strategy, row: Message) -> bool:
    """Is it timed in a probe of the strategy's own?"""
    if strategy is FSDP:
        return row.collective is not Collective.ALL_REDUCE
    return strategy is ZERO and case.layout.zero == 3 and row.collective is Collective.ALL_GATHER


def units_of(ledger: Ledger) -> list[tuple[Placed, ...]]:
    """FSDP2's units: each block, then everything else together."""
    rest = tuple(placed for placed in ledger.segments if not placed.prefix)
    return [*((placed,) for placed in ledger.segments if placed.prefix), *([rest] if rest else [])]


def gather_ranks(layout: Layout) -> set[int]:
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
