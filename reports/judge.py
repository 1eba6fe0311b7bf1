"""One quantity of one case in two runs: better, worse, the same, or not to be told from noise.

A side of a case has one launch or several (further runs of the same code). Timed readings of a side's launches are put
together and tested; what its launches are apart by, and what the machine's own operators changed by, a change has to
exceed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from reports.measures import Better, Kind, Measure
from suite.stats import ALPHA, LEAST, Interval
from suite.two_samples import RankTest, adjusted, difference_interval, least_p, rank_test, ratio_interval
from suite.units import percent_text

#: times beside which other processes kept more cores than this busy are not held against a run
CROWDED_CORES = 0.25

Launches = Sequence[Sequence[float]]  # of one side: the readings of each launch


class Verdict(StrEnum):
    """What became of a quantity; the worst first."""

    WORSE = "worse"
    IMPROVED = "improved"
    NOISY = "noisy"
    SAME = "same"


@dataclass(frozen=True)
class Limits:
    """What counts as a change."""

    alpha: float = ALPHA
    least: float = LEAST


@dataclass(frozen=True)
class Judgement:
    """A quantity's two sides and what is to be thought of them. Values are medians, in the quantity's own unit."""

    measure: Measure
    before: float
    after: float
    readings: tuple[int, int]
    launches: tuple[int, int]
    change: float
    """after over before less one; of what is a share already, after less before"""
    needed: float
    """from what on it counts, the larger median over the smaller less one"""
    verdict: Verdict
    why: str
    """the rule that gave the verdict"""
    test: RankTest | None = None
    p: float | None = None
    """of the test, adjusted for all cases of the quantity"""
    interval: Interval | None = None
    """what the change may be, by the test alone"""

    @property
    def is_found(self) -> bool:
        """Is there a change that counts?"""
        return self.verdict in (Verdict.WORSE, Verdict.IMPROVED)

    @property
    def is_bad(self) -> bool:
        """Does the quantity go the bad way, however little?"""
        return self.change > 0 if self.measure.better is Better.LESS else self.change < 0


@dataclass(frozen=True)
class Pair:
    """A quantity of a case, read in two runs."""

    measure: Measure
    before: Launches
    after: Launches
    drift: float = 0.0
    """by what the machine's own operators differ, as a fraction"""
    other_cores: float = 0.0
    """that other processes kept busy in the busier of the two, where times suffer from it"""


def judge(pairs: Sequence[Pair], limits: Limits) -> tuple[Judgement, ...]:
    """The judgement of each pair; p-values are adjusted over those given, which are of one quantity in all cases.

    A pair has readings on both sides. A loss that is no number is worse than one that is.
    """
    found = [(_counted if pair.measure.kind is Kind.COUNTED else _timed)(pair, limits) for pair in pairs]
    tested = [place for place, each in enumerate(found) if each.test]
    raised = adjusted([test.p for each in found if (test := each.test)])
    for place, p in zip(tested, raised, strict=True):
        found[place] = _decided(replace(found[place], p=p), pairs[place], limits)
    return tuple(found)


def _counted(pair: Pair, limits: Limits) -> Judgement:
    """By value: where launches differ, their ranges must not meet."""
    measure = pair.measure
    least = limits.least if measure.least is None else measure.least
    first, second = _flat(pair.before), _flat(pair.after)
    draft = _draft(pair, least, "")
    broken = (any(map(math.isnan, first)), any(map(math.isnan, second)))
    if any(broken):
        verdict = {(True, True): Verdict.SAME, (False, True): Verdict.WORSE}.get(broken, Verdict.IMPROVED)
        return replace(draft, verdict=verdict, why="not a number")
    room = least if measure.is_share else least * abs(draft.before)
    gap = max(min(second) - max(first), min(first) - max(second))
    if gap <= room:
        said = "equal" if draft.change == 0 else f"within {_share(least)}" if least else "ranges meet"
        return replace(draft, verdict=Verdict.SAME, why=said)
    return replace(draft, verdict=_way(draft), why="counted, not equal")


def _timed(pair: Pair, limits: Limits) -> Judgement:
    """What is known before p-values are adjusted."""
    least = limits.least if pair.measure.least is None else pair.measure.least
    needed = max(least, pair.drift, *(_scatter(side) for side in (pair.before, pair.after)))
    first, second = _flat(pair.before), _flat(pair.after)
    of = difference_interval if pair.measure.is_share else ratio_interval
    interval, off = of(first, second, limits.alpha), 0.0 if pair.measure.is_share else 1.0
    if interval:
        interval = Interval(interval.value - off, interval.low - off, interval.high - off)
    return replace(_draft(pair, needed, ""), test=rank_test(first, second), interval=interval)


def _decided(found: Judgement, pair: Pair, limits: Limits) -> Judgement:
    """The verdict, once p is known."""
    least = limits.least if pair.measure.least is None else pair.measure.least
    assert found.p is not None
    apart = _apart(found)
    if found.p < limits.alpha and apart >= least and pair.other_cores > CROWDED_CORES:
        return replace(found, verdict=Verdict.NOISY, why=f"others kept {pair.other_cores:.1f} cores busy")
    if found.p < limits.alpha and apart >= found.needed:
        return replace(found, verdict=_way(found), why=f"at least {_share(found.needed)}")
    if found.interval and max(abs(found.interval.low), abs(found.interval.high)) < least:
        return replace(found, verdict=Verdict.SAME, why=f"interval within {_share(least)}")
    if apart < least and found.p < limits.alpha:
        return replace(found, verdict=Verdict.SAME, why=f"below {_share(least)}")
    if found.p < limits.alpha:
        cause = "the machine changed" if pair.drift == found.needed else "launches differ"
        return replace(found, verdict=Verdict.NOISY, why=f"{cause} by {_share(found.needed)}")
    if least_p(*found.readings) >= limits.alpha:
        return replace(found, verdict=Verdict.NOISY, why="too few readings")
    return replace(found, verdict=Verdict.NOISY, why=f"{_share(least)} could hide")


def _apart(found: Judgement) -> float:
    """The change as `needed` is given: the larger median over the smaller, so that times and rates are alike."""
    if found.measure.is_share or not found.before > 0 or not found.after > 0:
        return abs(found.change)
    return max(found.before, found.after) / min(found.before, found.after) - 1


def _draft(pair: Pair, needed: float, why: str) -> Judgement:
    first, second = _flat(pair.before), _flat(pair.after)
    before, after = statistics.median(first), statistics.median(second)
    return Judgement(
        measure=pair.measure,
        before=before,
        after=after,
        readings=(len(first), len(second)),
        launches=(len(pair.before), len(pair.after)),
        change=_change(before, after, pair.measure.is_share),
        needed=needed,
        verdict=Verdict.NOISY,
        why=why,
    )


def _change(before: float, after: float, is_share: bool) -> float:
    if before == after:
        return 0.0
    if is_share:
        return after - before
    return after / before - 1 if before else math.copysign(math.inf, after)


def _scatter(side: Launches) -> float:
    """What the medians of one side's launches are apart by, the largest over the smallest; 0 for one launch."""
    medians = [statistics.median(launch) for launch in side]
    return max(medians) / min(medians) - 1 if min(medians) > 0 else 0.0


def _way(found: Judgement) -> Verdict:
    return Verdict.WORSE if found.is_bad else Verdict.IMPROVED


def _flat(side: Launches) -> list[float]:
    return [value for launch in side for value in launch]


def _share(value: float) -> str:
    return percent_text(value, 2 if value < 0.1 else 0)
