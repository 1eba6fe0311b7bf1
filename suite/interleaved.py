"""Several contestants timed in turn in one process, and how their medians compare. Seconds. Torch-free.

In turn, because a machine's speed drifts: every round times each of them once, and the order moves on by one a round.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from suite.stats import Interval

RESAMPLES = 2000
CONFIDENCE = 0.95

Seconds = tuple[float, ...]


def interleave(
    contestants: Mapping[str, Callable[[int], object]],
    rounds: int,
    warmup: int,
    tell: Callable[[int], None] = lambda done: None,
) -> dict[str, Seconds]:
    """Seconds of each contestant's every round after `warmup` of them; each is called with the round's number.

    Python's garbage collector rests meanwhile, as in timeit, so that no contestant pays for another's garbage.
    """
    readings: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    gc.collect()
    gc.disable()
    try:
        for index in range(warmup + rounds):
            first = index % len(names)
            for name in names[first:] + names[:first]:
                start = time.perf_counter()
                contestants[name](index)
                readings[name].append(time.perf_counter() - start)
            tell(index + 1)
    finally:
        gc.enable()
    return {name: tuple(values[warmup:]) for name, values in readings.items()}


def ratio_of_medians(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """median(ours) / median(theirs); whole rounds are resampled, since a slow moment meets both."""
    return _bootstrap(ours, theirs, lambda a, b: statistics.median(a) / statistics.median(b))


def median_difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The median over rounds of ours - theirs."""
    return _bootstrap(ours, theirs, lambda a, b: statistics.median(x - y for x, y in zip(a, b, strict=True)))


def _bootstrap(
    ours: Sequence[float], theirs: Sequence[float], figure: Callable[[Sequence[float], Sequence[float]], float]
) -> Interval:
    """Percentile bootstrap over rounds, with a fixed seed. ValueError without rounds or of unequal numbers of them."""
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"as many rounds of both are needed, at least 1: got {len(ours)} and {len(theirs)}")
    draw = random.Random(0)
    count = len(ours)
    found = []
    for _ in range(RESAMPLES):
        picked = draw.choices(range(count), k=count)
        found.append(figure([ours[index] for index in picked], [theirs[index] for index in picked]))
    found.sort()
    cut = round(RESAMPLES * (1 - CONFIDENCE) / 2)
    return Interval(figure(ours, theirs), found[cut], found[-1 - cut])
