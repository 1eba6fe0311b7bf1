"""Fits the rate of large products on each device's `fit` rows again; suite/hardware/training_rates.py records it.

python -m reports.published.torch_fit TABLE.csv
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import mean

from reports.published.torch_times import TimedCase, step_seconds, timed_case
from suite.hardware import device
from suite.hardware.device import TERA
from suite.hardware.training_rates import FITTED, FittedRate, training_speeds
from suite.published import PublishedRow, read_table

#: the search ends when rates differ by less
PRECISION = 1e-4


def fit_rates(rows: Iterable[PublishedRow]) -> dict[tuple[str, ...], float]:
    """FLOP/s by the rows that it was fitted on: the rate at which the mean of the logs of predicted over published
    seconds is 0. Rows that are not there are an error (KeyError)."""
    by_id = {row.row_id: row for row in rows}
    names = {fitted.rows: name for name, fitted in FITTED.items()}
    return {ids: _fit([by_id[name] for name in ids], FITTED[name]) for ids, name in names.items()}


def _fit(rows: Sequence[PublishedRow], start: FittedRate) -> float:
    """Secant steps in the log of the rate."""
    cases = [(timed_case(row), row) for row in rows]
    low, high = math.log(0.9 * start.flops_per_second), math.log(1.1 * start.flops_per_second)
    at_low, at_high = _error(cases, low), _error(cases, high)
    while abs(high - low) > PRECISION:
        low, at_low, high = high, at_high, high - at_high * (high - low) / (at_high - at_low)
        at_high = _error(cases, high)
    return math.exp(high)


def _error(cases: Sequence[tuple[TimedCase, PublishedRow]], log_rate: float) -> float:
    """Mean of the logs of predicted over published seconds."""
    return mean(math.log(_seconds(timed, math.exp(log_rate)) / _published(timed, row)) for timed, row in cases)


def _seconds(timed: TimedCase, rate: float) -> float:
    found = device(timed.case.cluster.device)
    speeds = training_speeds(found, replace(FITTED[found.name], flops_per_second=rate))
    assert speeds is not None  # FITTED names devices with a bandwidth
    return step_seconds(timed, speeds)


def _published(timed: TimedCase, row: PublishedRow) -> float:
    """Seconds of a step by a row's tokens a second and GPU."""
    return timed.case.tokens_per_step / timed.case.layout.world_size / (row.published or math.nan)


def main(paths: Sequence[str]) -> None:
    """Print a line a fitted rate."""
    for ids, rate in fit_rates(row for path in paths for row in read_table(path).rows).items():
        print(f"{rate / TERA:.1f} TFLOP/s on {', '.join(ids)}")


if __name__ == "__main__":
    main(sys.argv[1:])
