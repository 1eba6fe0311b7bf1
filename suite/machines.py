"""Which machines take part in a bench, as its flags say: this one alone, or several of which one records."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from suite.case import Case
from suite.launch import Launcher
from suite.nodes import recording
from suite.parse import require
from suite.rendezvous import Endpoint
from suite.sweep import Runner


@dataclass(frozen=True)
class Machines:
    """The flags --rdzv and --node-rank."""

    endpoint: Endpoint | None
    """where several machines meet; None for one machine"""
    node_rank: int | None
    """this machine's number, 0 the one that records; None: the endpoint's host is that one"""

    @classmethod
    def parse(cls, rdzv: str | None, node_rank: int | None) -> Machines:
        """SpecError for an endpoint that is none, and for a number without an endpoint."""
        require(rdzv is not None or node_rank is None, "--node-rank: given without --rdzv; give both")
        return cls(None if rdzv is None else Endpoint.parse(rdzv, "--rdzv"), node_rank)

    @property
    def follows(self) -> bool:
        """Does another machine record?"""
        if self.endpoint is None:
            return False
        return not self.endpoint.is_here() if self.node_rank is None else self.node_rank > 0

    def check(self, cases: Sequence[Case]) -> None:
        """SpecError for flags that would have no effect on these cases."""
        nodes = _nodes(cases)
        require(self.endpoint is None or nodes > 1, "--rdzv: every case has cluster.nodes 1; give --nodes too")
        require(
            self.node_rank is None or 0 <= self.node_rank < nodes,
            f"--node-rank: {self.node_rank} is none of 0 to {nodes - 1}; 0 records",
        )

    def runner(
        self, cases: Sequence[Case], launcher: Launcher, wait_s: float
    ) -> contextlib.AbstractContextManager[Runner]:
        """What runs the cases: the launcher itself, or it with the other machines, once all of them have come."""
        if self.endpoint is None:
            return contextlib.nullcontext(launcher)
        return recording(self.endpoint, _nodes(cases), launcher, wait_s)


def _nodes(cases: Sequence[Case]) -> int:
    """Machines that the largest case takes."""
    return max(case.cluster.nodes for case in cases)
