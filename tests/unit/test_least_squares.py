"""The fit of a few constants: what is known is found again, and a row that is far off hardly moves it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from reports.published.least_squares import fit

pytestmark = pytest.mark.unit

SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def seconds(values: Mapping[str, float], size: float) -> float:
    return values["latency"] + size / values["rate"]


def misses(published: tuple[float, ...], values: Mapping[str, float]) -> list[float]:
    return [math.log(seconds(values, size) / found) for size, found in zip(SIZES, published, strict=True)]


def test_constants_that_made_the_rows_are_found_again() -> None:
    made = {"latency": 0.3, "rate": 5.0}
    rows = tuple(seconds(made, size) for size in SIZES)
    found = fit({"latency": 1.0, "rate": 1.0}, lambda values: misses(rows, values))
    assert found.values == pytest.approx(made, rel=1e-4)
    assert found.loss < 1e-9
    assert fit({"latency": 1.0, "rate": 1.0}, lambda values: misses(rows, values)) == found


def test_one_row_that_is_far_off_moves_it_little() -> None:
    made = {"latency": 0.3, "rate": 5.0}
    rows = tuple(seconds(made, size) * (3 if size == 4 else 1) for size in SIZES)
    found = fit({"latency": 1.0, "rate": 1.0}, lambda values: misses(rows, values))
    assert found.values == pytest.approx(made, rel=0.12)
