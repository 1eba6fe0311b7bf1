"""Share: the part of a model, and of each sequence, that one rank computes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from suite.layout import ContextMethod, Layout


def own_rows(rows: int, ranks: int, rank: int) -> range:
    """The rows that a rank holds of so many: parts of ceil(rows / ranks), so the last ranks' are smaller or empty.
    torch.chunk's split, and DTensor's Shard."""
    step = math.ceil(rows / ranks)
    return range(min(rank * step, rows), min((rank + 1) * step, rows))


@dataclass(frozen=True)
class Share:
    """What tensor, context and expert parallelism leave one rank: degrees, and the rank's place in each."""

    tp: int = 1
    tp_rank: int = 0
    sequence_parallel: bool = False
    """Are norms and residual stream divided over the sequence too?"""
    cp: int = 1
    cp_rank: int = 0
    context: ContextMethod = ContextMethod.RING
    is_balanced: bool = False
    """Does a ring's rank hold an early and a late chunk?"""
    ep: int = 1
    is_busiest: bool = True
    """With ep: is it the rank whose experts are chosen most? The first is taken to be"""
    received: tuple[int, ...] = ()
    """With ep, and a recorded routing: rows that the experts here receive in a micro-batch, block by block"""

    def rows(self, whole: int) -> int:
        """How many of a weight's rows this rank holds."""
        return len(own_rows(whole, self.tp, self.tp_rank))

    @property
    def stream_parts(self) -> int:
        """Parts into which a rank's tokens are cut between the regions that tensor parallelism divides."""
        return self.tp if self.sequence_parallel else 1


WHOLE = Share()


def share_of(layout: Layout, rank: int) -> Share:
    """The share of a rank of the layout."""
    return Share(
        tp=layout.tp,
        tp_rank=layout.place("tp", rank),
        sequence_parallel=layout.tp > 1 and layout.sequence_parallel,
        cp=layout.cp,
        cp_rank=layout.place("cp", rank),
        context=layout.context,
        is_balanced=layout.is_balanced,
        ep=layout.ep,
        is_busiest=layout.place("ep", rank) == 0,
    )
