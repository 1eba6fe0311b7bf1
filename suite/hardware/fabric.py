"""Fabric: the links between a cluster's devices, level by level: inside a node, between nodes, between pods."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from suite.hardware.curve import Curve
from suite.links import InSwitch, Level, Topology, check_levels
from suite.parse import require


@dataclass(frozen=True)
class Fabric:
    """Levels, innermost first, each a whole number of times as wide as the one before; the last holds the cluster."""

    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        require(bool(self.levels), "links: a fabric needs at least one level")
        check_levels(self.levels)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Ranks of each level's unit; 0: all that there are."""
        return tuple(level.ranks for level in self.levels)

    @cached_property
    def _shares(self) -> tuple[Curve | None, ...]:
        return tuple(Curve.of(level.shares, level.source) if level.shares else None for level in self.levels)

    @cached_property
    def _switch_shares(self) -> tuple[Curve | None, ...]:
        switches = [level.in_switch for level in self.levels]
        return tuple(None if switch is None else Curve.of(switch.shares, "") for switch in switches)

    def rate(self, level: int, nbytes: float) -> float:
        """Bytes/s that one device gets through its links of a level, one direction, sending so many bytes at once.

        Latency is not in it. Where devices share the bandwidth all of them are taken to talk at once.
        """
        link, curve = self.levels[level], self._shares[level]
        share = link.efficiency if curve is None else curve.at(nbytes)
        return link.bytes_per_second / link.shared_by * share

    def switch_seconds(self, level: int, ranks: int, payload: float) -> float | None:
        """Time of an all-reduce that the level's switch adds up; None where it does not."""
        link, curve = self.levels[level], self._switch_shares[level]
        if link.in_switch is None or curve is None or ranks < link.in_switch.from_ranks or payload < curve.sizes[0]:
            return None
        return 2 * link.latency_s + payload / (link.bytes_per_second * curve.at(payload))


__all__ = ["Fabric", "InSwitch", "Level", "Topology"]
