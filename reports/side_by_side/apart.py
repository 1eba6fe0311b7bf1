"""When two layouts' readings are told apart, and when their difference may be noise: then they tie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from suite.stats import summarize

#: medians have to be further apart than so many of both interquartile ranges together
SPREADS = 3.0
#: of fewer readings the ranges say too little
LEAST_READINGS = 4
#: times that differ by less are the same to anyone who has to choose
LEAST_TIME = 0.02


@dataclass(frozen=True)
class Rule:
    """How readings of a quantity are told apart: by more than `least` of the smaller one; where they scatter, by more
    than their scatter too."""

    least: float
    scatters: bool = False

    def apart(self, first: Sequence[float], second: Sequence[float]) -> bool:
        """Do the two differ by more than may be noise?

        Of what scatters: medians further apart than SPREADS times the sum of the interquartile ranges, and
        LEAST_READINGS on both sides. Of two samples of five from one normal distribution about one pair in a thousand
        is then called apart; of ten or more none in 20,000. Readings of one launch: what a launch as a whole is
        slower by is not seen. False where a side has no reading.
        """
        one, other = summarize(first), summarize(second)
        if one is None or other is None:
            return False
        distance = abs(one.median - other.median)
        if distance <= self.least * min(abs(one.median), abs(other.median)):
            return False
        if not self.scatters:
            return True
        return min(one.count, other.count) >= LEAST_READINGS and distance > SPREADS * (one.iqr + other.iqr)


@dataclass(frozen=True)
class Best:
    """The lowest of several: its place, and the places of those that are not told from it, lowest first."""

    place: int
    ties: tuple[int, ...]
    next: int | None
    """the lowest that is told apart"""


def lowest(readings: Sequence[Sequence[float]], rule: Rule) -> Best | None:
    """Who has the lowest median; None where fewer than two have any reading."""
    known = {place: found.median for place, values in enumerate(readings) if (found := summarize(values))}
    if len(known) < 2:
        return None
    first, *rest = sorted(known, key=lambda place: known[place])
    told = [place for place in rest if rule.apart(readings[first], readings[place])]
    return Best(first, tuple(place for place in rest if place not in told), told[0] if told else None)
