"""Readings and cases that the tests of comparisons share."""

from __future__ import annotations

from suite.layout import Layout
from tests.unit import report_samples as made

TEN = [1.00, 1.01, 0.99, 1.002, 0.998, 1.003, 0.997, 1.004, 0.996, 1.0]
ONE, TWO = made.case(), made.case(layout=Layout(dp=2))


def scaled(factor: float) -> list[float]:
    """The ten readings, so many times as long."""
    return [value * factor for value in TEN]
