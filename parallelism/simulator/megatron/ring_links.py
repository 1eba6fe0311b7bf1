"""RingLinks: nodes whose collectives pay for each way round the ring."""

from __future__ import annotations

from dataclasses import dataclass

from parallelism.megatron.run import MegatronRun
from parallelism.simulator.megatron.links import Axis, NodeLinks
from suite.collectives import Call, Collective


@dataclass(frozen=True)
class RingLinks(NodeLinks):
    """NodeLinks with latencies of one way round: an all-reduce, which scatters and gathers, goes round twice."""

    def seconds(self, call: Call, axis: Axis, run: MegatronRun, place: int = 0) -> float:
        """One collective."""
        found = super().seconds(call, axis, run, place)
        if call.collective is not Collective.ALL_REDUCE or call.ranks == 1:
            return found
        return found + (self.inner_latency_s if self._is_inside(call, axis, run, place) else self.outer_latency_s)
