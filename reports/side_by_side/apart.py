"""When two layouts' readings are told apart, and when their difference may be noise: then they tie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from suite.stats import summarize

#: medians have to be further apart than so many times both interquartile ranges together: of few readings, and of MANY
#: or more, whose ranges say more
SPREADS_OF_FEW, SPREADS_OF_MANY = 3.0, 1.5
MANY = 8
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

        Of what scatters: medians further apart than the sum of the interquartile ranges SPREADS_OF_FEW or
        SPREADS_OF_MANY times, and LEAST_READINGS on both sides. Of two samples from one normal distribution 1.3 pairs
        in a thousand are then called apart with 5 readings on each side, 0.2 with 8 (400,000 pairs drawn).

        All readings are of one launch: what a launch as a whole is slower by is not seen. Of pairs told apart in one
        run of the `strategies` suite (5 readings) 1 % stood the other way round in another of five runs, made over a
        day on a shared machine; of the tokens of three runs of the `kv` suite (14 readings) 0.3 %. False where a side
        has no reading.
        """
        one, other = summarize(first), summarize(second)
        if one is None or other is None:
            return False
        distance = abs(one.median - other.median)
        if distance <= self.least * min(abs(one.median), abs(other.median)):
            return False
        if not self.scatters:
            return True
        count = min(one.count, other.count)
        spreads = SPREADS_OF_MANY if count >= MANY else SPREADS_OF_FEW
        return count >= LEAST_READINGS and distance > spreads * (one.iqr + other.iqr)


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
