"""Level: one level of links between devices (inside a node, between nodes, between pods), as a Case may describe it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from suite.parse import SpecError, require, shown

TEXT_FORM = (
    "name:ranks:bytes_per_second:latency_s[:efficiency], ranks * for all that there are,"
    " bytes_per_second 100e9/8 where 8 share it"
)


class Topology(StrEnum):
    """How the devices of a level are joined."""

    SWITCH = "switch"  # any two of them at full bandwidth
    MESH = "mesh"  # a link for every two: a group of n has n-1 of a device's links


@dataclass(frozen=True)
class InSwitch:
    """All-reduces that the switch itself adds up (NVLink SHARP), in groups of at least `from_ranks`.

    `shares`: (payload, payload/second over the level's bytes_per_second), latency taken off; smaller payloads take the
    ring.
    """

    from_ranks: int
    shares: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        _check_shares("in_switch.shares", self.shares)
        require(bool(self.shares), "links.in_switch.shares: must not be empty")


@dataclass(frozen=True)
class Level:
    """One level of links. A group that fits into `ranks` neighbours stays below the next level; 0: all that there are.

    bytes_per_second  of one device, one direction, as the datasheet has it; of `shared_by` neighbours together where
                      they share it (a node's adapters); of one link in a mesh
    latency_s         of one message
    efficiency        share of the bandwidth that collectives of large messages achieve
    shares            (bytes, share of the bandwidth) by what a device sends at once, latency taken off: a ring's step
                      sends an n-th of the payload. Instead of `efficiency` where they were measured
    """

    name: str
    ranks: int
    bytes_per_second: float
    latency_s: float = 0.0
    efficiency: float = 1.0
    source: str = ""
    shared_by: int = 1
    topology: Topology = Topology.SWITCH
    shares: tuple[tuple[float, float], ...] = ()
    in_switch: InSwitch | None = None

    def __post_init__(self) -> None:
        require(self.ranks >= 0, f"links.{self.name}: ranks must be at least 1, or 0 for all, got {self.ranks}")
        for name in ("bytes_per_second", "efficiency"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"links.{self.name}: {name} must be positive, got {value}")
        require(self.efficiency <= 1, f"links.{self.name}: efficiency must be at most 1, got {self.efficiency}")
        require(0 <= self.latency_s < math.inf, f"links.{self.name}: latency_s must not be negative: {self.latency_s}")
        require(self.shared_by >= 1, f"links.{self.name}: shared_by must be at least 1, got {self.shared_by}")
        _check_shares(f"{self.name}.shares", self.shares)

    @property
    def is_switched(self) -> bool:
        """Has every device its full bandwidth to any other?"""
        return self.topology is Topology.SWITCH

    @classmethod
    def from_text(cls, text: str, where: str = "links") -> Level:
        """Read name:ranks:bytes_per_second[/shared_by]:latency_s[:efficiency]. SpecError for anything else."""
        parts = text.split(":")
        require(
            len(parts) in (4, 5) and bool(parts[0]), f"{where}: {shown(text)} is not a level; accepted: {TEXT_FORM}"
        )
        rate, slash, sharers = parts[2].partition("/")
        try:
            ranks = 0 if parts[1] == "*" else int(parts[1])
            figures = [float(part) for part in (rate, *parts[3:])]
            shared_by = int(sharers) if slash else 1
        except ValueError:
            raise SpecError(f"{where}: {shown(text)} is not a level; accepted: {TEXT_FORM}") from None
        require(parts[1] == "*" or ranks >= 1, f"{where}.{parts[0]}: ranks must be at least 1, or *, got {parts[1]}")
        efficiency = figures[2] if len(figures) == 3 else 1.0
        return cls(parts[0], ranks, figures[0], figures[1], efficiency, shared_by=shared_by)


def check_levels(levels: tuple[Level, ...]) -> None:
    """Refuse levels that are not each a whole number of times as wide as the one before, innermost first."""
    for inner, outer in pairwise(levels):
        require(inner.ranks > 0, f"links.{inner.name}: ranks(all) leaves nothing to {outer.name}; only the last may")
        require(
            outer.ranks == 0 or (outer.ranks > inner.ranks and outer.ranks % inner.ranks == 0),
            f"links.{outer.name}: ranks({outer.ranks}) must be a multiple of {inner.name}'s ranks({inner.ranks})",
        )


def _check_shares(where: str, shares: tuple[tuple[float, float], ...]) -> None:
    for size, share in shares:
        fits = 0 < size < math.inf and 0 < share < math.inf
        require(fits, f"links.{where}: sizes and shares must be positive, got {size}, {share}")
    ascending = all(low < high for (low, _), (high, _) in pairwise(shares))
    require(ascending, f"links.{where}: sizes must ascend, got {[size for size, _ in shares]}")
