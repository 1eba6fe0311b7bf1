"""Lanes: one number for each of many plans, so that plans of one shape are worked out together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Lanes:
    """Numbers side by side; true where any of them is not 0. What `Cost` and the engine do with a float works."""

    __slots__ = ("values",)

    def __init__(self, values: NDArray[np.float64]) -> None:
        self.values = values

    @classmethod
    def of(cls, values: Sequence[float]) -> Lanes | float:
        """A plain number where all are equal."""
        if min(values) == max(values):
            return values[0]
        import numpy as np

        return cls(np.array(values))

    def __add__(self, other: Lanes | float) -> Lanes:
        return Lanes(self.values + (other.values if isinstance(other, Lanes) else other))

    __radd__ = __add__

    def __mul__(self, factor: float) -> Lanes:
        return Lanes(self.values * factor)

    def __bool__(self) -> bool:
        return bool(self.values.any())


def later(one: Lanes | float, other: Lanes | float) -> Lanes | float:
    """The larger, lane by lane."""
    if not isinstance(one, Lanes):
        if not isinstance(other, Lanes):
            return one if one >= other else other
        one, other = other, one
    import numpy as np

    return Lanes(np.maximum(one.values, other.values if isinstance(other, Lanes) else other))
