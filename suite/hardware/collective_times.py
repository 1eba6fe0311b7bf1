"""How long collectives take between this machine's ranks: looked up by kind, group and size. Torch-free.

A figure is what one call adds to a rank's time when it comes after a little work, not in a tight loop of calls: a rank
that has just computed wakes threads and waits for others that have just computed too, which on shared cores costs
several times what the bytes do. `groups` alike talk at once, and together they are the machine's ranks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from suite.collectives import Collective, Counted
from suite.parse import SpecError, require
from suite.stats import NOISY_SPREAD
from suite.units import bytes_text

#: what a step says one right after another, so that nothing lies between its calls: torch's ZeroRedundancyOptimizer
#: sends each new parameter to all ranks
IN_A_ROW = frozenset({Collective.BROADCAST})


class Form(StrEnum):
    """How a strategy calls a collective, which on the host costs differently."""

    DIRECT = "direct"  # torch.distributed, on tensors that are there; a send and its receipt, neighbour to neighbour
    FUNCTIONAL = "functional"  # torch.ops._c10d_functional: a new tensor, then a wait; tensor parallelism
    RING = "ring"  # two sends to the next rank and two receipts, in one batch; each of the two counts half


@dataclass(frozen=True, slots=True, order=True)
class Exchange:
    """One kind of call: what, how, in a group of how many ranks, how many such groups at once, with what payload
    (suite/collectives.py)."""

    collective: Collective
    form: Form
    ranks: int
    groups: int
    payload_bytes: int

    def __post_init__(self) -> None:
        require(self.ranks >= 2, f"exchange.ranks: must be at least 2, got {self.ranks}")
        require(self.groups >= 1, f"exchange.groups: must be at least 1, got {self.groups}")
        require(self.payload_bytes >= 1, f"exchange.payload_bytes: must be at least 1, got {self.payload_bytes}")

    @property
    def world(self) -> int:
        """Ranks on the machine."""
        return self.ranks * self.groups

    def __str__(self) -> str:
        crowd = f"{self.ranks} ranks" + (f", {self.groups} groups at once" if self.groups > 1 else "")
        return f"{self.collective} ({self.form}) of {bytes_text(self.payload_bytes)} among {crowd}"


@dataclass(frozen=True, slots=True)
class CollectiveTime:
    """Seconds that one call adds to a rank's time."""

    collective: Collective
    form: Form
    ranks: int
    groups: int
    payload_bytes: int
    seconds: float
    """median over the readings of all ranks"""
    iqr_seconds: float
    readings: int
    between_seconds: float
    """work of a rank between two calls, as long as it takes alone; its own time is not counted"""

    def __post_init__(self) -> None:
        require(self.seconds >= 0, f"collective time: must not be negative, got {self.seconds} of {self.exchange}")

    @property
    def exchange(self) -> Exchange:
        """What was timed."""
        return Exchange(self.collective, self.form, self.ranks, self.groups, self.payload_bytes)

    @property
    def is_noisy(self) -> bool:
        """Is the IQR more than suite.stats.NOISY_SPREAD of the median?"""
        return self.iqr_seconds > NOISY_SPREAD * self.seconds


@dataclass(frozen=True, slots=True)
class CollectiveSeconds:
    """Seconds of a call, and in words what they rest on; empty where that very call was measured."""

    seconds: float
    basis: str = ""


_Kind = tuple[Collective, Form, int, int]


@dataclass(frozen=True)
class CollectiveTimes:
    """Looks exchanges up."""

    times: tuple[CollectiveTime, ...]

    @cached_property
    def _kinds(self) -> dict[_Kind, list[CollectiveTime]]:
        found: dict[_Kind, list[CollectiveTime]] = defaultdict(list)
        for time in sorted(self.times, key=lambda time: time.payload_bytes):
            found[time.collective, time.form, time.ranks, time.groups].append(time)
        return dict(found)

    def seconds(self, exchange: Exchange) -> CollectiveSeconds:
        """As measured with that very payload; else on the straight line through the two sizes around it, or through
        the two at the nearer end (latency + bytes / bandwidth). Where so many groups at once were not measured, those
        of the nearest number that was; the basis says so.

        Raises SpecError where that collective was not measured with so many ranks.
        """
        groups = self._groups(exchange)
        points = self._kinds[exchange.collective, exchange.form, exchange.ranks, groups]
        notes = [] if groups == exchange.groups else [f"{exchange}: measured with {groups} at once"]
        for point in points:
            if point.payload_bytes == exchange.payload_bytes:
                return CollectiveSeconds(point.seconds, "; ".join(notes))
        seconds, how = _between(points, exchange.payload_bytes)
        return CollectiveSeconds(seconds, "; ".join([*notes, f"{exchange}: {how}"]))

    def _groups(self, exchange: Exchange) -> int:
        """How many groups at once stand for this exchange's."""
        alike = (exchange.collective, exchange.form, exchange.ranks)
        known = [kind[3] for kind in self._kinds if kind[:3] == alike]
        if not known:
            measured = sorted({kind[2] for kind in self._kinds if kind[:2] == alike[:2]})
            counts = f"with {', '.join(map(str, measured))} ranks alone" if measured else "at all"
            raise SpecError(f"calibration.collectives: {exchange}: was not measured; that collective {counts}")
        return min(known, key=lambda count: (abs(count - exchange.groups), -count))


def _between(points: Sequence[CollectiveTime], payload: int) -> tuple[float, str]:
    """Seconds by the straight line nearest to a payload, and how; `points` ascend and none has this payload."""
    if len(points) == 1:
        return points[0].seconds, f"as measured with {bytes_text(points[0].payload_bytes)}, the only size"
    above = next((index for index, point in enumerate(points) if point.payload_bytes > payload), len(points))
    low, high = points[max(0, min(above, len(points) - 1) - 1) :][:2]
    slope = (high.seconds - low.seconds) / (high.payload_bytes - low.payload_bytes)
    sizes = f"{bytes_text(low.payload_bytes)} and {bytes_text(high.payload_bytes)}"
    if 0 < above < len(points):
        return low.seconds + slope * (payload - low.payload_bytes), f"interpolated between {sizes}"
    end = low if above == 0 else high
    # more bytes never take less: a falling end is noise
    seconds = end.seconds + max(0.0, slope) * (payload - end.payload_bytes)
    return max(0.0, seconds), f"extrapolated from {sizes}"


def exchange_of(call: Counted, form: Form, world: int) -> Exchange:
    """A message of a layout on `world` ranks: the other groups of its size talk at the same time."""
    return Exchange(call.collective, form, call.ranks, max(1, world // call.ranks), call.payload)


def distinct(exchanges: Iterable[Exchange]) -> tuple[Exchange, ...]:
    """Each once, in a fixed order."""
    return tuple(sorted(set(exchanges)))
