"""How long an optimizer step takes, predicted and measured, and what follows from it. Seconds."""

from __future__ import annotations

from dataclasses import dataclass

from suite.record import Measurement, Quantity, TimeEstimate
from suite.stats import Summary, quartiles, relative_error, summarize

#: Steps, counted from 0, whose time is dropped: allocator, caches and lazily built state settle in them.
WARMUP_STEPS = 3


@dataclass(frozen=True)
class Speed:
    """Step time and what follows from it. A step takes as long as its slowest rank; warm-up is dropped."""

    predicted: TimeEstimate | None
    step: Summary | None  # measured seconds a step
    quartiles: tuple[float, float] | None  # first and third, seconds
    tokens_per_step: int

    @property
    def predicted_seconds(self) -> float | None:
        """Predicted step time."""
        return self.predicted.step_seconds if self.predicted else None

    @property
    def measured_seconds(self) -> float | None:
        """Median of the measured steps."""
        return self.step.median if self.step else None

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured of the step time."""
        return relative_error(self.predicted_seconds, self.measured_seconds)

    @property
    def predicted_tokens_per_second(self) -> float | None:
        """Predicted tokens/s over all ranks."""
        return self.predicted.tokens_per_second if self.predicted else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of a step over its median time, all ranks together."""
        return self.tokens_per_step / self.step.median if self.step and self.step.median else None

    @property
    def mfu(self) -> float | None:
        """Measured model-FLOPs utilisation: the predicted one, scaled by predicted over measured step time.

        The model's FLOPs and the device's rate are the same on both sides, so only the time differs.
        """
        if not self.predicted or self.predicted.mfu is None or not self.predicted_seconds or not self.measured_seconds:
            return None
        return self.predicted.mfu * self.predicted_seconds / self.measured_seconds

    @property
    def is_noisy(self) -> bool:
        """Do the measured steps scatter too much to be trusted?"""
        return bool(self.step and self.step.is_noisy)


def speed_of(predicted: TimeEstimate | None, measurement: Measurement | None, tokens_per_step: int) -> Speed:
    """The step time of a case; nothing measured where no step is left after the warm-up."""
    steps = step_seconds(measurement)
    return Speed(predicted, summarize(steps), quartiles(steps) if len(steps) > 1 else None, tokens_per_step)


def step_seconds(measurement: Measurement | None) -> list[float]:
    """Seconds of every step after the warm-up, of its slowest rank."""
    return slowest(measurement, Quantity.STEP_TIME, WARMUP_STEPS)


def slowest(measurement: Measurement | None, quantity: Quantity, first: int = 0) -> list[float]:
    """The readings of a time in their order, from the one numbered `first` on, each of the rank that took longest."""
    found: dict[int, float] = {}
    for sample in measurement.samples if measurement else ():
        if sample.quantity is quantity and sample.index >= first:
            found[sample.index] = max(sample.value, found.get(sample.index, sample.value))
    return [found[index] for index in sorted(found)]
