"""Goodput: what share of a long run's time its training is, in expectation and in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

from parallelism.simulator.failures import Reliability
from suite.parse import require, shown


@dataclass(frozen=True)
class Shares:
    """Where a run's time goes, as shares that sum to 1."""

    useful: float  # steps that count in the end
    saving: float  # waiting for checkpoints that were kept
    lost: float  # work and checkpoints since the one that was restarted from
    restarting: float  # from failures until training went on, a replacement being at hand
    waiting: float  # for a repair, no spare being left


def shares(run: Reliability, interval_s: float) -> Shares:
    """The expected shares of a run that lasts long, with so many seconds of work between two checkpoints.

    With r failures a second, t of work and B of blocking, W of writing and R of restarting, a stretch between two
    restarts is exp(r R) / r long and keeps t exp(-r W) / (exp(r (t + B)) - 1) of work: useful is one over the other
    (renewal-reward, exact; for W = 0 it is Daly's complete model, 2006). Failures strike while saving and restarting
    too. Where repairs are counted, the run stands still for `waiting_share` and the rest shrinks with it.
    Not counted: the run's two ends. SpecError for an interval that cannot be.
    """
    run.check_interval(interval_s)
    rate, saving = run.per_second, run.checkpoint.blocking_s
    cycle = interval_s + saving
    if not rate:
        return Shares(interval_s / cycle, saving / cycle, 0.0, 0.0, 0.0)
    restart = run.recovery.restart_s
    kept = math.exp(-rate * (cycle + run.checkpoint.writing_s + restart)) / -math.expm1(-rate * cycle)
    waiting = waiting_share(run)
    running = 1 - waiting
    useful, saved = rate * interval_s * kept * running, rate * saving * kept * running
    restarting = -math.expm1(-rate * restart) * running
    return Shares(useful, saved, max(0.0, running - useful - saved - restarting), restarting, waiting)


def goodput(run: Reliability, interval_s: float) -> float:
    """The share of a run's time that is training which counts."""
    return shares(run, interval_s).useful


def waiting_share(run: Reliability) -> float:
    """The share of a run's time in which it waits for a repair, since more devices are away than there are spares.

    Erlang's B formula for spares + 1 servers and the load (failures that take a device away) x (repair time): no
    further device fails while the job stands still, just as a call that is turned away. Exact for any distribution of
    repair times. Not counted: spares that fail while they lie ready.
    """
    if run.recovery.repair_s is None:
        return 0.0
    load = run.per_second * run.recovery.replaced * run.recovery.repair_s
    blocked = 1.0
    for servers in range(1, run.recovery.spares + 2):
        blocked = load * blocked / (servers + load * blocked)
    return blocked


def lost_work_s(run: Reliability, interval_s: float) -> float:
    """Expected seconds of work (and checkpoints) thrown away at a failure that strikes outside a restart.

    1/r - (t + B) exp(-r W) / (exp(r (t + B)) - 1): about half of t + B where failures are rare, plus W.
    """
    run.check_interval(interval_s)
    rate, cycle = run.per_second, interval_s + run.checkpoint.blocking_s
    if not rate:
        return cycle / 2 + run.checkpoint.writing_s
    kept = math.exp(-rate * (cycle + run.checkpoint.writing_s)) / -math.expm1(-rate * cycle)
    return 1 / rate - cycle * kept


def longest_restart_s(run: Reliability, interval_s: float, least: float) -> float | None:
    """Seconds of restarting with which goodput is still `least`, whatever the run's own; None: not even with none.

    Goodput falls with exp(-r R), so R = ln(goodput at R = 0 / least) / r. inf without failures. SpecError for a goal
    that is no share.
    """
    require(0 < least < 1, f"goodput: a share between 0 and 1, got {shown(least)}")
    found = goodput(run, interval_s) * math.exp(run.per_second * run.recovery.restart_s)
    if found < least:
        return None
    return math.log(found / least) / run.per_second if run.per_second else math.inf
