"""What an average pipeline rank says of all its parameters at the least: gathered once, gradients reduced once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from parallelism.data.fsdp import ShardedUnit, gather_message, reduction_messages
from parallelism.simulator.unit_messages import Seconds
from suite.collectives import Collective, Message
from suite.formats import Formats
from suite.layout import Layout


class Exchanged(NamedTuple):
    """Seconds of all parameters of an average pipeline rank: gathered once, and their gradients reduced once."""

    gather: float
    reduce: float


def exchanged(layout: Layout, parameters: int, experts: int, formats: Formats, price: Seconds) -> Exchanged:
    """Of a model with so many parameters, among them so many of experts, which have shards and replicas of their own
    where expert parallelism divides them. Not counted: padding, each message's own latency, for they go as one."""
    apart, ranks = experts if layout.ep > 1 else 0, layout.tp * layout.pp
    common, own = int((parameters - apart) / ranks), int(apart / (layout.ep * ranks))
    if layout.fsdp == 1:
        groups = (layout.replica_ranks, common), (layout.expert_replica_ranks, own)
        nbytes = formats.gradients.nbytes
        sent = (Message(Collective.ALL_REDUCE, "dp", among, size * nbytes, 1, *"   ") for among, size in groups)
        return Exchanged(0.0, _seconds(sent, price))
    units = (
        ShardedUnit("all", 1, common, layout.shard_ranks),
        ShardedUnit("experts", 1, own, layout.expert_shard_ranks),
    )
    gathers = (gather_message(unit, unit.ranks, formats.numerics.weights.nbytes, "forward", 1) for unit in units)
    reductions = (row for unit in units for row in reduction_messages(layout, unit, formats.reduced.nbytes, 1))
    return Exchanged(_seconds(gathers, price), _seconds(reductions, price))


def _seconds(rows: Iterable[Message], price: Seconds) -> float:
    return sum(price(row) for row in rows if row.ranks > 1 and row.payload)
