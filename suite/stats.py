"""Statistics of raw samples: median and interquartile range, warm-up dropped. Nobody reports a best-of-N."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: A row whose interquartile range is a larger part of its median than this says that it is noisy.
NOISY_SPREAD = 0.10


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
    low, high = min(kept), max(kept)
    if len(kept) == 1:
        return Summary(1, kept[0], 0.0, low, high)
    first, middle, third = statistics.quantiles(kept, n=4, method="inclusive")
    return Summary(len(kept), middle, third - first, low, high)


def relative_error(predicted: float | None, measured: float | None) -> float | None:
    """(predicted - measured) / measured; 0 where both are zero, None where either is unknown or measured is 0."""
    if predicted is None or measured is None:
        return None
    if measured == 0:
        return 0.0 if predicted == 0 else None
    return (predicted - measured) / measured
