"""How often to save: the interval of most goodput by our own model, beside Young's and Daly's formulas."""

from __future__ import annotations

import math

from parallelism.simulator.failures import Reliability
from suite.parse import require, shown


def young_interval(checkpoint_s: float, mtbf_s: float) -> float:
    """Seconds of work between two checkpoints, sqrt(2 C M).

    Source: J. W. Young, A first order approximation to the optimum checkpoint interval, CACM 17(9), 1974. Counted: a
    checkpoint's cost C, half an interval lost at a failure of the job (mean time between them M). Not counted: failures
    while saving, more than one in an interval. It holds where C << M: the exact interval is about 2C/3 shorter.
    SpecError for negative times.
    """
    _check(checkpoint_s, mtbf_s)
    return math.sqrt(2 * checkpoint_s * mtbf_s) if checkpoint_s else 0.0


def daly_interval(checkpoint_s: float, mtbf_s: float) -> float:
    """Seconds of work between two checkpoints, sqrt(2 C M) (1 + sqrt(C/2M)/3 + (C/2M)/9) - C for C < 2M, else M.

    Source: J. T. Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future Generation
    Computer Systems 22(3), 2006. It approximates the maximum of the same model as ours (exponential failures,
    also while saving and restarting), in which the restart time plays no part. SpecError for negative times.
    """
    _check(checkpoint_s, mtbf_s)
    if checkpoint_s >= 2 * mtbf_s:
        return mtbf_s
    if math.isinf(mtbf_s):
        return mtbf_s if checkpoint_s else 0.0
    part = checkpoint_s / (2 * mtbf_s)
    return young_interval(checkpoint_s, mtbf_s) * (1 + math.sqrt(part) / 3 + part / 9) - checkpoint_s


def best_interval(run: Reliability, shortest_s: float, longest_s: float) -> float:
    """Seconds of work between two checkpoints at which `goodput` is largest, between a step and the whole run.

    With rate r and blocking time B it is the root of (1 - r t) exp(r (t + B)) = 1 in t, by bisection; goodput rises
    before it and falls after it, so the bounds, and the time to write a checkpoint, cut it off exactly. Neither the
    restart time nor the time to write enters. Goodput there is (1 - r t) exp(-r (R + W)). Without failures: the whole
    run. SpecError for bounds that are none.
    """
    require(0 < shortest_s <= longest_s, f"interval: nothing from {shown(shortest_s)} to {shown(longest_s)} s")
    writing = run.checkpoint.writing_s - run.checkpoint.blocking_s
    require(
        writing <= longest_s,
        f"checkpoint.writing_s: {run.checkpoint.writing_s:g} s are longer than the run of {longest_s:g} s",
    )
    if not run.per_second:
        return longest_s
    rate, saving = run.per_second, run.checkpoint.blocking_s
    low, high = 0.0, 1 / rate
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        rises = rate * middle < 1 and math.log1p(-rate * middle) + rate * (middle + saving) > 0
        low, high = (middle, high) if rises else (low, middle)
    return min(max(low, shortest_s, writing), longest_s)


def _check(checkpoint_s: float, mtbf_s: float) -> None:
    good = 0 <= checkpoint_s < math.inf
    require(good, f"checkpoint.blocking_s: must be finite and not negative, got {shown(checkpoint_s)}")
    require(mtbf_s > 0, f"failures.mtbf_s: must be positive, got {shown(mtbf_s)}")
