"""Seconds of one collective over a fabric: rings, trees, switches that add up, all-to-alls, sends.

Letters: S the payload in bytes (suite.collectives), n ranks, B a device's rate at a level, m ranks of the group in one
unit of the level below, each with links of its own. All groups of an axis talk at once (suite.links: shared_by).
Not counted: other axes' messages at the same time, congestion inside the network.
"""

from __future__ import annotations

import math

from parallelism.simulator.placement import Crossing, Placement, crossings, group_of, groups_of
from suite.case import Case
from suite.collectives import Collective, Message
from suite.hardware.fabric import Fabric
from suite.layout import Layout

#: a tree's rate over a ring's: NCCL 2.8, src/graph/tuning.cc, "busBw * .9"
TREE_SHARE = 0.9
Ranks = range | tuple[int, ...]


def collective_seconds(collective: Collective, payload: float, ranks: Ranks, fabric: Fabric) -> float:
    """Seconds of one collective of `payload` bytes in the group of these ranks; 0 for a rank alone.

    All-reduce: the fastest of ring, double binary tree and, inside one level that has it, the switch. A send goes from
    each rank of the group to the next: the slowest of them. SpecError for a group wider than the last level.
    """
    if len(ranks) == 1 or payload == 0:
        return 0.0
    levels = crossings(ranks, fabric.widths)
    n = len(ranks)
    match collective:
        case Collective.ALL_REDUCE:
            return _all_reduce(payload, n, levels, fabric)
        case Collective.ALL_GATHER | Collective.REDUCE_SCATTER:
            return _ring(payload, n, n - 1, 1, levels, fabric)
        case Collective.BROADCAST | Collective.REDUCE:
            return _ring(payload, n, n, 1, levels, fabric)
        case Collective.SEND:
            return max(_hop(payload, level, fabric) for level in levels)
        case _:
            return _pairwise(payload, n, levels, fabric)


def send_seconds(payload: float, sender: int, receiver: int, fabric: Fabric) -> float:
    """Seconds of one message between two ranks that no other rank's message meets on a shared link but its equals'."""
    return collective_seconds(Collective.SEND, payload, (sender, receiver), fabric)


def message_seconds(message: Message, case: Case, fabric: Fabric, rank: int | None = None) -> float:
    """Seconds of ONE call of a message (it has `count` of them), in the group of `rank`; None: in the slowest group."""
    if rank is not None:
        groups = {group_of(message.axis, message.ranks, case.layout, rank)}
    else:
        groups = distinct_groups(message.axis, message.ranks, case.layout, fabric)
    times = {collective_seconds(message.collective, message.payload, group.ranks, fabric) for group in groups}
    return max(times)


def distinct_groups(axis: str, size: int, layout: Layout, fabric: Fabric) -> set[Placement]:
    """Groups of an axis that may differ in time: one where each is alike in its units, else one for each offset."""
    first = group_of(axis, size, layout, 0)
    span, widths = first.stride * size, fabric.widths
    if all(width == 0 or width % span == 0 or (span % width == 0 and _fits(width, first.stride)) for width in widths):
        return {first}
    return set({group.first % max(widths): group for group in groups_of(axis, size, layout)}.values())


def _fits(width: int, stride: int) -> bool:
    return width % stride == 0 or stride % width == 0


def _all_reduce(payload: float, n: int, levels: tuple[Crossing, ...], fabric: Fabric) -> float:
    times = [_ring(payload, n, 2 * (n - 1), 2, levels, fabric), _tree(payload, n, levels, fabric)]
    if len(levels) == 1:
        added = fabric.switch_seconds(levels[0].level, n, payload)
        times += [] if added is None else [added]
    return min(times)


def _ring(payload: float, n: int, steps: int, turns: int, levels: tuple[Crossing, ...], fabric: Fabric) -> float:
    """A ring in the order of ranks: `steps` n-ths of the payload pass every boundary, over m links at once.

    The slowest level bounds the flow; latency is that of the hops, `turns` times round but for the cheapest hop.
    Patarasuk and Yuan 2009: 2 (n-1)/n S/B + 2 (n-1) latency for an all-reduce inside one level.
    """
    step = payload / n
    flow = max(steps * step / (_rate(crossing, step / crossing.below, fabric) * crossing.below) for crossing in levels)
    return flow + turns * _latency(levels, fabric)


def _latency(levels: tuple[Crossing, ...], fabric: Fabric) -> float:
    """Of the ring's hops, all but the cheapest: a turn ends where it began."""
    hops = [(fabric.levels[crossing.level].latency_s, crossing.hops) for crossing in levels]
    return sum(latency * count for latency, count in hops) - min(latency for latency, _ in hops)


def _tree(payload: float, n: int, levels: tuple[Crossing, ...], fabric: Fabric) -> float:
    """A double binary tree over units, a chain inside them (NCCL 2.4): each half of the payload goes up and down.

    Each sends 2 S, and S where there are two. Latency: the chain, and log2 of the units, up and down.
    """
    flow = latency = 0.0
    for crossing in levels:
        is_chain = crossing.level == 0
        sent = 2 if crossing.units > 2 else 1
        depth = crossing.units - 1 if is_chain else math.ceil(math.log2(crossing.units))
        rate = _rate(crossing, payload / n / crossing.below, fabric) * crossing.below * TREE_SHARE
        flow = max(flow, sent * payload / rate)
        latency += 2 * depth * fabric.levels[crossing.level].latency_s
    return flow + latency


def _pairwise(payload: float, n: int, levels: tuple[Crossing, ...], fabric: Fabric) -> float:
    """All-to-all, gather and scatter: an n-th of the payload to or from each peer, over the level that joins the two.

    Levels work side by side, the peers of one level after one another.
    """
    part = payload / n
    return max(
        crossing.peers * (fabric.levels[crossing.level].latency_s + part / _rate(crossing, part, fabric))
        for crossing in levels
    )


def _hop(payload: float, crossing: Crossing, fabric: Fabric) -> float:
    """One message. Of a unit's ranks in the group only one sends over this level: the others leave it their share."""
    link = fabric.levels[crossing.level]
    rate = fabric.rate(crossing.level, payload) * min(crossing.below, link.shared_by)
    return link.latency_s + payload / rate


def _rate(crossing: Crossing, nbytes: float, fabric: Fabric) -> float:
    """Bytes/s of one device of the group at a level."""
    link = fabric.levels[crossing.level]
    links = 1 if link.is_switched else crossing.within - 1
    return fabric.rate(crossing.level, nbytes) * links
