"""Curve: how a rate or a time depends on size, as measured or cited at some sizes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from suite.parse import require


@dataclass(frozen=True, slots=True)
class Curve:
    """Values at sizes, ascending. Between two sizes: a straight line in the logs of both; beyond the ends: the last
    value holds. `source` says where the values come from."""

    sizes: tuple[float, ...]
    values: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        require(len(self.sizes) == len(self.values) > 0, f"curve: {len(self.sizes)} sizes, {len(self.values)} values")
        require(all(0 < size < math.inf for size in self.sizes), f"curve.sizes: must be positive, got {self.sizes}")
        require(all(0 < value < math.inf for value in self.values), f"curve.values: must be positive: {self.values}")
        ascending = all(low < high for low, high in zip(self.sizes, self.sizes[1:], strict=False))
        require(ascending, f"curve.sizes: must ascend, got {self.sizes}")

    @classmethod
    def of(cls, points: Iterable[tuple[float, float]], source: str) -> Curve:
        """From (size, value) pairs in any order."""
        ordered = sorted(points)
        return cls(tuple(size for size, _ in ordered), tuple(value for _, value in ordered), source)

    @classmethod
    def flat(cls, value: float, source: str) -> Curve:
        """The same at every size."""
        return cls((1.0,), (value,), source)

    def at(self, size: float) -> float:
        """The value at a size."""
        above = bisect_right(self.sizes, size)
        if above == 0:
            return self.values[0]
        if above == len(self.sizes):
            return self.values[-1]
        low, high = self.sizes[above - 1], self.sizes[above]
        part = math.log(size / low) / math.log(high / low)
        return float(self.values[above - 1] * (self.values[above] / self.values[above - 1]) ** part)
