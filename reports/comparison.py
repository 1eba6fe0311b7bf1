"""One number known in two ways: what the joins of estimates and measurements are made of."""

from __future__ import annotations

from dataclasses import dataclass

from suite.collectives import Collective
from suite.record import Component, Moment, Quantity
from suite.stats import relative_error


@dataclass(frozen=True, slots=True)
class Comparison:
    """One number known in two ways. Rank None: of the whole job; component and collective None: the total."""

    quantity: Quantity
    component: Component | None
    rank: int | None
    moment: Moment | None
    predicted: float | None
    measured: float | None
    collective: Collective | None = None

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured; None where either is unknown."""
        return relative_error(self.predicted, self.measured)

    @property
    def difference(self) -> float | None:
        """predicted - measured, in the quantity's own unit."""
        if self.predicted is None or self.measured is None:
            return None
        return self.predicted - self.measured

    @property
    def is_exact(self) -> bool:
        """Are both known and equal?"""
        return self.predicted is not None and self.predicted == self.measured
