"""DeepSpeed's ZeRO on the walk: what its stages allocate around each module, gradient, backward pass and update.

Read off DeepSpeed 0.19's runtime (engine.py, fp16/unfused_optimizer.py, zero/stage_1_and_2.py, zero/stage3.py,
zero/partition_parameters.py, runtime/comm/coalesced_collectives.py) and held to allocator traces.
"""

from __future__ import annotations

from collections.abc import Callable

from memory.zero_acts import Acts
from memory.zero_buckets import Bucketed
from memory.zero_gathers import Gathered
from memory.zero_rank import Rank
from suite.case import Case
from suite.operators import Ledger
from suite.tape import Backend

STAGES: dict[int, Callable[[Rank], Acts]] = {0: Acts, 1: Bucketed, 2: Bucketed, 3: Gathered}


def acts_of(case: Case, ledger: Ledger, rank: int, backend: Backend) -> Acts | None:
    """What DeepSpeed does in this case; None where another engine runs it."""
    if not case.layout.is_deepspeed:
        return None
    return STAGES[case.layout.zero](Rank(case, ledger, rank, backend))
