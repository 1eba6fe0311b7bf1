"""Where a group's ranks are: how many share each unit of a fabric's levels, and which levels its ring crosses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from suite.layout import AXES, Layout
from suite.parse import SpecError

#: the axes over which a message's group may run, innermost last (parallelism/mesh.py)
_JOINED = {
    "tp": ("tp",), "cp": ("cp",), "ep": ("ep",), "fsdp": ("fsdp", "ep", "cp"), "dp": ("dp",), "pp": ("pp",),
}  # fmt: skip


@dataclass(frozen=True)
class Placement:
    """The ranks of a group: `size` of them, `stride` apart, from `first` on."""

    size: int
    stride: int = 1
    first: int = 0

    @property
    def ranks(self) -> range:
        """The ranks."""
        return range(self.first, self.first + self.size * self.stride, self.stride)


@dataclass(frozen=True, slots=True)
class Crossing:
    """What a group has to do with one level of a fabric.

    below   fewest of its ranks in one unit of the level below (a node, for the network): so many links carry its flow
    peers   most of its ranks that one of them meets over this level
    units   most units of the level below in one unit of this level
    hops    steps of its ring, in the order of ranks, that go over this level
    within  most of its ranks in one unit of this level
    """

    level: int
    below: int
    peers: int
    units: int
    hops: int
    within: int


def groups_of(axis: str, size: int, layout: Layout) -> Iterator[Placement]:
    """Every group of `size` ranks over an axis of the rank grid pp x dp x fsdp x ep x cp x tp, as torch's mesh makes
    them.

    `fsdp` runs over ep and cp too; `dp` as well where FSDP2 does not shard (parallelism/mesh.py). Those of experts that
    expert parallelism divides, told by their size, have ep's ranks between theirs.
    """
    last = "cp" if axis == "dp" and layout.fsdp == 1 else _JOINED[axis][-1]
    if layout.ep > 1 and (axis, size) in (("fsdp", layout.expert_shard_ranks), ("dp", layout.expert_replica_ranks)):
        last = axis
    stride = math.prod(getattr(layout, name) for name in AXES[AXES.index(last) + 1 :])
    for block in range(0, layout.world_size, stride * size):
        for offset in range(stride):
            yield Placement(size, stride, block + offset)


def group_of(axis: str, size: int, layout: Layout, rank: int) -> Placement:
    """The group over an axis that holds a rank."""
    some = next(groups_of(axis, size, layout))
    span = some.stride * size
    return Placement(size, some.stride, rank // span * span + rank % some.stride)


@lru_cache(maxsize=4096)
def crossings(ranks: range | tuple[int, ...], widths: tuple[int, ...]) -> tuple[Crossing, ...]:
    """The levels that a group's messages go over, innermost first; `widths` are the levels' (Fabric.widths).

    SpecError for a group wider than the last level.
    """
    found, inner = [], 1
    levels = [_level(low, high, widths) for low, high in pairwise(ranks)]
    levels.append(_level(ranks[-1], ranks[0], widths))
    for index, width in enumerate(widths):
        if (hops := levels.count(index)) == 0:
            inner = width
            continue
        below = Counter(rank // inner for rank in ranks)
        within = Counter(rank // width if width else 0 for rank in ranks)
        units = Counter(unit * inner // width if width else 0 for unit in below)
        peers = max(within[unit * inner // width if width else 0] - count for unit, count in below.items())
        found.append(Crossing(index, min(below.values()), peers, max(units.values()), hops, max(within.values())))
        inner = width
    return tuple(found)


def _level(one: int, other: int, widths: tuple[int, ...]) -> int:
    """The innermost level that joins two ranks."""
    for index, width in enumerate(widths):
        if width == 0 or one // width == other // width:
            return index
    raise SpecError(
        f"cluster.links: ranks {one} and {other} talk, beyond the last level's ranks({widths[-1]}); add a level"
    )
