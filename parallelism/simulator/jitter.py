"""How long the slowest of many ranks takes: a distribution of a rank's time, and the expected maximum of many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from suite.parse import require, setting, shown

Floats = NDArray[np.float64]

#: standard deviations between which all the weight lies that a float can tell from none
_LOWEST, _HIGHEST, _POINTS = -9.0, 12.0, 4201
#: beyond it a normal time would often be negative
_WIDEST_NORMAL = 0.25


class JitterKind(StrEnum):
    """The distribution of a rank's time."""

    LOGNORMAL = "lognormal"
    NORMAL = "normal"


@dataclass(frozen=True)
class Jitter:
    """A rank's time over its mean: its mean is 1, its standard deviation sigma. It is the same throughout a step, and
    another in the next; ranks differ one apart from the other. Not counted: jitter within a step, which a pipeline
    evens out or adds up."""

    sigma: float = setting(0.0, "standard deviation of a rank's time over its mean")
    kind: JitterKind = setting(JitterKind.LOGNORMAL, f"distribution: {', '.join(JitterKind)}")

    def __post_init__(self) -> None:
        good = 0 <= self.sigma < math.inf
        require(good, f"jitter.sigma: must be finite and not negative, got {shown(self.sigma)}")
        require(
            self.kind is not JitterKind.NORMAL or self.sigma <= _WIDEST_NORMAL,
            f"jitter.sigma: a normal time of sigma {self.sigma} would be negative at times; at most {_WIDEST_NORMAL},"
            " or lognormal",
        )

    def factors(self, deviates: Floats) -> Floats:
        """Standard normal deviates as factors of a rank's time."""
        if self.kind is JitterKind.NORMAL:
            return np.maximum(0.0, 1 + self.sigma * deviates)
        width = math.sqrt(math.log1p(self.sigma**2))
        return np.exp(width * deviates - width**2 / 2)


def expected_maximum(jitter: Jitter, ranks: int) -> float:
    """The mean factor of the slowest of so many ranks: by how much jitter alone makes a synchronous step longer."""
    return expected_of_maximum(lambda factors: factors, jitter, ((1.0, ranks),))


def expected_of_maximum(
    seconds: Callable[[Floats], Floats], jitter: Jitter, ranks: Sequence[tuple[float, int]]
) -> float:
    """The mean of a function of the slowest rank's factor, over groups (factor of its own, how many ranks).

    The maximum's distribution is the product of the ranks' own (order statistics of independent draws); the mean is
    the integral of `seconds` over it, by the trapezoid rule over the quantiles of every group: exact to six digits.
    SpecError for no ranks, or a factor that is not positive.
    """
    for factor, count in ranks:
        require(count >= 1, f"ranks: must be at least 1, got {count}")
        require(0 < factor < math.inf, f"factor: must be positive and finite, got {shown(factor)}")
    if not jitter.sigma:
        return float(seconds(np.array([max(factor for factor, _ in ranks)]))[0])
    deviates = np.linspace(_LOWEST, _HIGHEST, _POINTS)
    own = jitter.factors(deviates)
    own, at = np.unique(own, return_index=True)  # a normal one is cut off at 0
    logs = _log_normal_cdf(deviates[at])
    points = np.unique(np.concatenate([factor * own for factor, _ in ranks]))
    weight = np.exp(sum(count * _log_cdf(points / factor, own, logs) for factor, count in ranks))
    values = seconds(points)
    return float(values[0] * weight[0] + np.sum(np.diff(weight) * (values[1:] + values[:-1]) / 2))


def _log_cdf(factors: Floats, own: Floats, logs: Floats) -> Floats:
    """Logarithm of the chance that a rank's factor is at most this."""
    return np.interp(factors, own, logs, left=-np.inf, right=0.0)


def _log_normal_cdf(deviates: Floats) -> Floats:
    """Logarithm of the standard normal distribution function."""
    return np.array([_log_phi(deviate) for deviate in deviates])


def _log_phi(deviate: float) -> float:
    if deviate < 0:
        return math.log(math.erfc(-deviate / math.sqrt(2)) / 2)
    return math.log1p(-math.erfc(deviate / math.sqrt(2)) / 2)
