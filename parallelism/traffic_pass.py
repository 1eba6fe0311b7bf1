"""The traffic pass of a rank: one steady step with every collective counted, apart from timing and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from parallelism.traffic_probe import record_traffic
from suite.collectives import Call, tally
from suite.record import Quantity, Sample, traffic_values

#: DDP settles its buckets in the second step, and says so to the other ranks: the third is steady
STEADY_STEP = 2


def measure_traffic(trainer_step: Callable[[int], object], rank: int) -> list[Sample]:
    """What `rank` sends in a steady step. `trainer_step(index)` runs step `index` of a fresh trainer on every rank.

    The steps before STEADY_STEP are run unheard. Raises UncountedCollective for a collective without a rule.
    """
    for index in range(STEADY_STEP):
        trainer_step(index)
    with record_traffic() as calls:
        trainer_step(STEADY_STEP)
    return samples_of(calls, rank)


def samples_of(calls: Iterable[Call], rank: int) -> list[Sample]:
    """Bytes sent, payload and calls of each collective, a sample each; a rank that sent nothing says so with a zero."""
    rows = [
        Sample(quantity, value, rank, STEADY_STEP, collective=collective)
        for collective, sums in tally(calls).items()
        for quantity, value in traffic_values(sums).items()
    ]
    return rows or [Sample(Quantity.BYTES_SENT, 0.0, rank, STEADY_STEP)]
