"""Loss curves: what a measurement learned, and how far curves that should be one curve lie apart. Nats a token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from suite.record import Measurement, Quantity

Points = tuple[tuple[int, float], ...]  # (step, value), steps ascending


@dataclass(frozen=True)
class LossCurve:
    """Training and validation loss by optimizer step, and what guessing by frequency loses where it was recorded."""

    training: Points = ()
    validation: Points = ()
    unigram_entropy: float | None = None

    @property
    def final(self) -> float | None:
        """Training loss of the last step."""
        return self.training[-1][1] if self.training else None

    @property
    def final_validation(self) -> float | None:
        """The last validation loss."""
        return self.validation[-1][1] if self.validation else None

    @property
    def perplexity(self) -> float | None:
        """exp of the last validation loss; None where there is none, infinite where it overflows."""
        if self.final_validation is None:
            return None
        try:
            return math.exp(self.final_validation)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class LossSpread:
    """Where curves that should coincide lie furthest apart."""

    relative: float  # (highest - lowest) / |lowest| at that step
    step: int
    steps: int  # how many steps all curves share


def curve_of(measurement: Measurement | None) -> LossCurve:
    """The measurement's loss curve; empty where there is no measurement."""
    if measurement is None:
        return LossCurve()
    entropies = measurement.values(Quantity.UNIGRAM_ENTROPY)
    return LossCurve(
        training=_points(measurement, Quantity.LOSS),
        validation=_points(measurement, Quantity.VALIDATION_LOSS),
        unigram_entropy=entropies[-1] if entropies else None,
    )


def spread(curves: Sequence[LossCurve]) -> LossSpread | None:
    """Largest relative distance between the training curves over the steps they share.

    None for fewer than two curves, or where no step is shared. A loss that is not a number on some
    but not all curves counts as an infinite distance: such curves do not coincide.
    """
    tables = [dict(curve.training) for curve in curves if curve.training]
    if len(tables) < 2:
        return None
    shared = sorted(set(tables[0]).intersection(*tables[1:]))
    if not shared:
        return None
    distances = [(_distance([table[step] for table in tables]), step) for step in shared]
    relative, step = max(distances, key=lambda pair: (pair[0], -pair[1]))
    return LossSpread(relative, step, len(shared))


def _points(measurement: Measurement, quantity: Quantity) -> Points:
    """The quantity by step on the lowest rank that recorded it (it is a global mean, the same on all)."""
    samples = [sample for sample in measurement.samples if sample.quantity is quantity]
    if not samples:
        return ()
    rank = min(sample.rank for sample in samples)
    table = {sample.index: sample.value for sample in samples if sample.rank == rank}
    return tuple(sorted(table.items()))


def _distance(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0
    if len(finite) < len(values):
        return math.inf
    low, high = min(finite), max(finite)
    if low == high:
        return 0.0
    return (high - low) / abs(low) if low else math.inf
