"""Statistics of raw samples: median and interquartile range, warm-up dropped. Nobody reports a best-of-N."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: A row whose interquartile range is a larger part of its median than this says that it is noisy.
NOISY_SPREAD = 0.10

#: the chance of an error that a test is held to, and the change that counts, unless others are asked for
ALPHA, LEAST = 0.05, 0.02


@dataclass(frozen=True, slots=True)
class Summary:
    """What a set of repeated readings says."""

    count: int
    median: float
    iqr: float
    minimum: float
    maximum: float

    @property
    def spread(self) -> float:
        """IQR over median."""
        return self.iqr / self.median if self.median else 0.0

    @property
    def is_noisy(self) -> bool:
        """Is the spread above NOISY_SPREAD?"""
        return self.spread > NOISY_SPREAD


@dataclass(frozen=True)
class Interval:
    """A figure, and the interval that it lies in with some confidence (its maker says how much)."""

    value: float
    low: float
    high: float


def summarize(values: Sequence[float], warmup: int = 0) -> Summary | None:
    """Summary of `values` after the first `warmup` are dropped; None where nothing is left."""
    kept = list(values[warmup:])
    if not kept:
        return None
    first, third = quartiles(kept)
    return Summary(len(kept), statistics.median(kept), third - first, min(kept), max(kept))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile, between readings where they fall between two; of one reading that one, twice."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def relative_error(predicted: float | None, measured: float | None) -> float | None:
    """(predicted - measured) / measured; 0 where both are zero, None where either is unknown or measured is 0."""
    if predicted is None or measured is None:
        return None
    if measured == 0:
        return 0.0 if predicted == 0 else None
    return (predicted - measured) / measured
