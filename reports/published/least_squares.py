"""Least squares of a few positive constants: relative errors, far-off rows count less, the same answer every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
#: an error beyond which a row counts like a straight line, not a square (Huber's soft form)
FAR = 0.1
_STEP = 1e-4  # of a logarithm, for the slopes
_ROUNDS = 40
_ENOUGH = 1e-7  # relative gain below which the search ends


@dataclass(frozen=True)
class Found:
    """The constants, and the mean of sqrt(1 + (error / FAR)^2) - 1 over the rows."""

    values: dict[str, float]
    loss: float


def fit(start: Mapping[str, float], logarithms: Callable[[Mapping[str, float]], list[float]]) -> Found:
    """Constants near `start` that make `logarithms` (ln predicted - ln published, a row each) small.

    Levenberg and Marquardt's method on the logarithms of the constants, which keeps them positive, with soft_l1
    weights. Deterministic; a local minimum.
    """
    names = tuple(start)
    x = np.log([start[name] for name in names])

    def at(place: Array) -> Array:
        return np.array(logarithms(dict(zip(names, map(float, np.exp(place)), strict=True))))

    errors, damping = at(x), 1e-3
    for _ in range(_ROUNDS):
        slopes = np.array([(at(x + _STEP * unit) - errors) / _STEP for unit in np.eye(len(names))]).T
        weights = 1 / np.sqrt(1 + (errors / FAR) ** 2)
        normal, right = slopes.T @ (weights[:, None] * slopes), slopes.T @ (weights * errors)
        before = _loss(errors)
        while damping < 1e9:
            step = np.linalg.solve(normal + damping * (np.diag(np.diag(normal)) + 1e-9 * np.eye(len(names))), -right)
            step = np.clip(step, -1.0, 1.0)
            if -right @ step <= _ENOUGH * len(errors) * FAR**2 * before:
                break  # not even as the slopes have it
            tried = at(x + step)
            if _loss(tried) < before:
                x, errors, damping = x + step, tried, max(damping / 5, 1e-9)
                break
            damping *= 5
        if before - _loss(errors) <= _ENOUGH * before:
            break
    return Found(dict(zip(names, map(float, np.exp(x)), strict=True)), _loss(errors))


def _loss(errors: Array) -> float:
    return float(np.mean(np.sqrt(1 + (errors / FAR) ** 2) - 1))
