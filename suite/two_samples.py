"""Do two sets of readings differ, and by how much? Mann and Whitney's test, Cliff's delta, the ratio's interval.

Nothing is assumed of how readings scatter. They are taken as independent: what all readings of one process share (a
busy neighbour, say) the test takes for a difference.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from suite.stats import Interval

#: readings of both sides together up to which every division of them is counted; its counts then fit 64 bits
COUNTED = 60


@dataclass(frozen=True)
class RankTest:
    """What Mann and Whitney's test says of two samples."""

    u: float
    """pairs in which the second sample's reading is the larger; a tie is half a pair"""
    pairs: int
    p: float
    """two-sided: how often chance alone puts the two at least as far apart"""
    is_exact: bool
    """is every division counted, rather than taken as normal?"""

    @property
    def delta(self) -> float:
        """Cliff's delta, the rank-biserial correlation: 1 if every reading of the second is the larger, -1 if none is,
        0 if neither tends to be. (Cliff 1993)"""
        return 2 * self.u / self.pairs - 1


def rank_test(first: Sequence[float], second: Sequence[float]) -> RankTest | None:
    """Mann and Whitney's U of the second sample and its two-sided p; None where a sample is empty.

    Ties have the mean of their places. Up to COUNTED readings p is exact, given those ties: of all ways to divide the
    ranks into samples of these sizes, the part whose U is at least as far from its mean. Beyond, U is taken as normal,
    with the variance that the ties leave and half a pair off for its steps. (Mann & Whitney 1947; Lehmann 1975, 1.4)
    """
    if not first or not second:
        return None
    ordered = sorted(first)
    doubled_u = sum(bisect_left(ordered, value) + bisect_right(ordered, value) for value in second)
    pairs = len(first) * len(second)
    is_exact = len(first) + len(second) <= COUNTED
    p = (_counted if is_exact else _normal)(_tie_sizes(first, second), len(second), abs(doubled_u - pairs))
    return RankTest(doubled_u / 2, pairs, p, is_exact)


def ratio_interval(first: Sequence[float], second: Sequence[float], alpha: float) -> Interval | None:
    """The second sample over the first: ratio of medians, and between which ratios the test leaves it.

    The interval holds every factor that, taken out of the second sample, leaves nothing that the test finds at
    `alpha`: the ratios of all pairs, but those at both ends that are too few for the test (Hodges & Lehmann 1963).
    None where readings are not all above zero, or too few for any interval.
    """
    if not first or not second or min(*first, *second) <= 0:
        return None
    ratios = [later / earlier for later in second for earlier in first]
    return _between(statistics.median(second) / statistics.median(first), ratios, _cut(len(first), len(second), alpha))


def difference_interval(first: Sequence[float], second: Sequence[float], alpha: float) -> Interval | None:
    """The second sample less the first: difference of medians, and between which differences the test leaves it, as
    `ratio_interval`. None where readings are too few for any interval."""
    if not first or not second:
        return None
    apart = [later - earlier for later in second for earlier in first]
    return _between(statistics.median(second) - statistics.median(first), apart, _cut(len(first), len(second), alpha))


def least_p(first: int, second: int) -> float:
    """The smallest p that samples of these sizes can have: two of all ways to divide them."""
    return min(1.0, 2 / math.comb(first + second, first))


def adjusted(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values of tests asked together, raised so that a limit holds for all of them at once. (Holm 1979)

    With every value that is then below alpha called a difference, the chance of one call in error is at most alpha,
    however the tests depend on one another.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    raised, highest = [0.0] * len(p_values), 0.0
    for done, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - done) * p_values[place]))
        raised[place] = highest
    return tuple(raised)


def _between(value: float, of_pairs: list[float], cut: int | None) -> Interval | None:
    if cut is None:
        return None
    ordered = sorted(of_pairs)
    return Interval(value, ordered[cut], ordered[-1 - cut])


def _tie_sizes(first: Sequence[float], second: Sequence[float]) -> tuple[int, ...]:
    """How many readings of both samples share each value, by rising value."""
    values = sorted((*first, *second))
    sizes: list[int] = []
    for place, value in enumerate(values):
        if place and value == values[place - 1]:
            sizes[-1] += 1
        else:
            sizes.append(1)
    return tuple(sizes)


def _counted(sizes: tuple[int, ...], count: int, distance: int) -> float:
    """The part of all divisions whose doubled U is at least `distance` from its mean."""
    ways = _divisions(sizes, count)
    total = sum(sizes)
    mean = count * (total + 1)  # of the doubled sum of ranks; U is that sum less a constant
    far = np.abs(np.arange(len(ways)) - mean) >= distance
    return min(1.0, float(ways[far].sum()) / math.comb(total, count))


@cache
def _divisions(sizes: tuple[int, ...], count: int) -> np.ndarray:
    """How many choices of `count` readings have each doubled sum of ranks, by that sum."""
    total = sum(sizes)
    ways = np.zeros((count + 1, total * (total + 1) + 1), dtype=np.int64)
    ways[0, 0] = 1
    below = 0
    for size in sizes:
        doubled_rank = 2 * below + size + 1
        below += size
        for _ in range(size):
            ways[1:, doubled_rank:] += ways[:-1, :-doubled_rank].copy()
    return ways[count]


def _normal(sizes: tuple[int, ...], count: int, distance: int) -> float:
    """The same with U taken as normal."""
    total = sum(sizes)
    ties = sum(size**3 - size for size in sizes) / (total * (total - 1))
    variance = count * (total - count) / 12 * (total + 1 - ties)
    if variance == 0:
        return 1.0
    away = max(0.0, (distance - 1) / 2) / math.sqrt(variance)
    return min(1.0, math.erfc(away / math.sqrt(2)))


@cache
def _cut(first: int, second: int, alpha: float) -> int | None:
    """How many of the ratios an interval leaves out at each end, the largest U that the test still finds; None where it
    finds none."""
    total, pairs = first + second, first * second
    if total > COUNTED:
        deviation = math.sqrt(pairs * (total + 1) / 12)
        return max(0, math.floor(pairs / 2 - 0.5 - _deviations(alpha) * deviation))
    ways = _divisions((1,) * total, second)
    lowest = second * (second + 1)  # doubled sum of the ranks where U is 0
    chance = np.cumsum(ways[lowest : lowest + 2 * pairs + 1 : 2]) / math.comb(total, second)
    allowed = int(np.searchsorted(chance, alpha / 2, side="right"))
    return allowed - 1 if allowed else None


def _deviations(alpha: float) -> float:
    """Standard deviations beyond which a normal value lies in `alpha` of all cases, both sides together."""
    return statistics.NormalDist().inv_cdf(1 - alpha / 2)
