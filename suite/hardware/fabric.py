"""Fabric: the links between a cluster's devices, level by level: inside a node, between nodes, between pods."""

from __future__ import annotations

import math
from dataclasses import dataclass

from suite.parse import require


@dataclass(frozen=True)
class Level:
    """One level of links. A group that fits into `ranks` neighbours stays below the next level.

    bytes_per_second  of one device, one direction, as the datasheet has it
    latency_s         of one message
    efficiency        share of the bandwidth that collectives of large messages achieve
    """

    name: str
    ranks: int
    bytes_per_second: float
    latency_s: float
    efficiency: float = 1.0
    source: str = ""

    def __post_init__(self) -> None:
        require(self.ranks >= 1, f"links.{self.name}: ranks must be at least 1, got {self.ranks}")
        for name in ("bytes_per_second", "efficiency"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"links.{self.name}: {name} must be positive, got {value}")
        require(0 <= self.latency_s < math.inf, f"links.{self.name}: latency_s must not be negative: {self.latency_s}")


@dataclass(frozen=True)
class Fabric:
    """Levels, innermost first, each wider than the one before; the last holds the whole cluster."""

    levels: tuple[Level, ...]
