"""A rank's memory over one steady step, as an estimate gives it: bytes by component at points of the step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from suite.record import Component, Moment


@dataclass(frozen=True, slots=True)
class Span:
    """A phase of the step, told by the moment that is its highest instant, up to a place."""

    window: Moment
    until: int


@dataclass(frozen=True)
class Timeline:
    """Bytes at each point; the components of a point sum to all that the rank holds there.

    `at` is a point's place in the step, counted in allocations and frees. The optimizer's own are not walked through,
    so that its stretch is given a quarter of the others' length.
    """

    rank: int
    at: tuple[int, ...]
    nbytes: dict[Component, tuple[int, ...]]
    moments: dict[Moment, int]  # which point a moment is
    spans: tuple[Span, ...]  # in order, from the first point to the last
    micro_batches: int = 1  # that are shown; those between the second and the last are like the second

    @cached_property
    def totals(self) -> tuple[int, ...]:
        """Bytes in all at each point."""
        return tuple(map(sum, zip(*self.nbytes.values(), strict=True)))
