"""Links: seconds of a Megatron rank's messages, by the axis that talks: tp next to each other, then cp, dp, pp."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from parallelism.megatron.run import MegatronRun
from suite.collectives import Call, Collective, sent_bytes


class Axis(StrEnum):
    """Who talks. Ranks of an axis lie as far apart as the axes before it are wide (Megatron's order: tp-cp-dp-pp)."""

    TENSOR = "tp"
    CONTEXT = "cp"
    DATA = "dp"
    PIPELINE = "pp"


class Links(Protocol):
    """What a cluster's links say of a message."""

    def seconds(self, call: Call, axis: Axis, run: MegatronRun, place: int = 0) -> float:
        """One collective, alone on its links but for the groups beside it that do the same. `place`: the pipeline rank
        that sends to the next."""
        ...


def stride(axis: Axis, run: MegatronRun) -> int:
    """How far apart the ranks of an axis lie."""
    widths = {Axis.TENSOR: 1, Axis.CONTEXT: run.tp, Axis.DATA: run.tp * run.cp, Axis.PIPELINE: run.tp * run.cp * run.dp}
    return widths[axis]


@dataclass(frozen=True)
class NodeLinks:
    """Nodes of so many devices: links of each device inside, and a node's share of the network outside.

    inner_bytes_per_second   of one device, one direction, as reached by large messages
    outer_bytes_per_second   of a whole node, one direction, as reached by large messages
    inner_latency_s, outer_latency_s   of one message, whatever its size
    step_latency_s           for each rank beyond the second
    """

    per_node: int
    inner_bytes_per_second: float
    outer_bytes_per_second: float
    inner_latency_s: float = 0.0
    outer_latency_s: float = 0.0
    step_latency_s: float = 0.0

    def seconds(self, call: Call, axis: Axis, run: MegatronRun, place: int = 0) -> float:
        """Latency, and what a rank sends over what is its own of the narrowest link on the ring.

        A ring over nodes enters and leaves each once, however many of its ranks are there, and shares the node's
        network with the groups beside it; a send has a device's part of the network for itself.
        """
        if call.ranks == 1:
            return 0.0
        sent = float(sent_bytes(call.collective, call.payload, call.ranks))
        beyond = self.step_latency_s * max(0, call.ranks - 2)
        if self._is_inside(call, axis, run, place):
            return self.inner_latency_s + beyond + sent / self.inner_bytes_per_second
        together = max(1, self.per_node // stride(axis, run)) if call.collective is not Collective.SEND else 1
        own = min(1.0, together / self.per_node) * self.outer_bytes_per_second
        return self.outer_latency_s + beyond + sent / min(own, self.inner_bytes_per_second)

    def _is_inside(self, call: Call, axis: Axis, run: MegatronRun, place: int) -> bool:
        """Are all of them in one node?"""
        apart = stride(axis, run)
        if call.collective is Collective.SEND:
            return place * apart // self.per_node == (place + 1) * apart // self.per_node
        return call.ranks * apart <= self.per_node
