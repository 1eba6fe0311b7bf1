"""A long run lived through, seed by seed: failures strike, work is lost, spares run out. For the spread of goodput."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from parallelism.simulator.failures import Reliability
from parallelism.simulator.goodput import goodput
from suite.parse import SpecError, require, shown

#: failures that one call lives through at most, all seeds together: a minute or so
MOST_FAILURES = 10_000_000


@dataclass(frozen=True)
class Life:
    """How one run went, in seconds."""

    work_s: float
    wall_s: float
    failures: int
    lost_s: float
    restarting_s: float
    waiting_s: float

    @property
    def goodput(self) -> float:
        """The share of its time that was training which counted."""
        return self.work_s / self.wall_s


@dataclass(frozen=True)
class Spread:
    """Of one figure over seeds: its mean, 5th and 95th percentile (linear between ranks), and the mean's own error."""

    mean: float
    p5: float
    p95: float
    standard_error: float
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of these values, at least one."""
        ordered = sorted(values)
        require(bool(ordered), "seeds: must be at least 1, got 0")
        count, mean = len(ordered), math.fsum(ordered) / len(ordered)
        variance = math.fsum((value - mean) ** 2 for value in ordered) / max(1, count - 1)
        return cls(mean, _percentile(ordered, 0.05), _percentile(ordered, 0.95), math.sqrt(variance / count), count)


def lives(run: Reliability, interval_s: float, work_s: float, seeds: int, first_seed: int = 0) -> tuple[Life, ...]:
    """The run of so much work, once a seed; the same seed gives the same run.

    Failures and repairs come at exponential times, also while saving and restarting. Over in the moment in which the
    last checkpoint is written. Its mean is `goodput`'s, but for the ends, which the latter leaves out.
    SpecError for an interval longer than the run, fewer than one seed, a run that would hardly end.
    """
    run.check_interval(interval_s)
    require(0 < work_s < math.inf, f"run: must be positive and finite, got {shown(work_s)} s of work")
    require(interval_s <= work_s, f"interval: {interval_s:g} s are longer than the run's {work_s:g} s of work")
    require(seeds >= 1, f"seeds: must be at least 1, got {seeds}")
    useful = goodput(run, interval_s)
    if not useful:
        gap = run.failures.mtbf_s
        raise SpecError(f"interval: of {interval_s:g} s none is ever kept, failures being {gap:g} s apart")
    expected = seeds * run.per_second * work_s / useful
    require(
        expected <= MOST_FAILURES,
        f"run: {expected:.3g} failures over {seeds} seeds are too many to live through (at most {MOST_FAILURES:.0e});"
        " fewer seeds, a shorter run, or save more often",
    )
    return tuple(_Living(run, interval_s, work_s, random.Random(first_seed + place)).live() for place in range(seeds))


@dataclass
class _Living:
    """One run as it goes."""

    run: Reliability
    interval_s: float
    work_s: float
    dice: random.Random
    clock: float = 0.0
    failures: int = 0
    lost: float = 0.0
    restarting: float = 0.0
    waiting: float = 0.0
    repairs: list[float] = field(default_factory=list)  # when each device that is away comes back: a heap

    def live(self) -> Life:
        """From the first step to the last checkpoint."""
        saving, writing = self.run.checkpoint.blocking_s, self.run.checkpoint.writing_s
        cycle, total = self.interval_s + saving, max(1, math.ceil(self.work_s / self.interval_s * (1 - 1e-12)))
        last = self.work_s - (total - 1) * self.interval_s
        done = 0
        while True:
            end = (total - done - 1) * cycle + last + saving + writing
            strike = self._next()
            if strike >= end:
                self.clock += end
                return Life(self.work_s, self.clock, self.failures, self.lost, self.restarting, self.waiting)
            kept = max(0, int((strike - writing) // cycle))
            done += kept
            self.lost += strike - kept * cycle
            self.clock += strike
            self._recover()

    def _recover(self) -> None:
        """A failure has struck: wait for a device, restart; a failure meanwhile begins it again."""
        restart = self.run.recovery.restart_s
        while True:
            self.failures += 1
            self._replace()
            strike = self._next()
            spent = min(strike, restart)
            self.clock += spent
            self.restarting += spent
            if strike >= restart:
                return

    def _replace(self) -> None:
        """A device is away until it is repaired; where no spare is left, the run stands still until one is back."""
        recovery = self.run.recovery
        if recovery.repair_s is None or self.dice.random() >= recovery.replaced:
            return
        while self.repairs and self.repairs[0] <= self.clock:
            heapq.heappop(self.repairs)
        heapq.heappush(self.repairs, self.clock + self.dice.expovariate(1) * recovery.repair_s)
        if len(self.repairs) > recovery.spares:
            back = heapq.heappop(self.repairs)
            self.waiting += back - self.clock
            self.clock = back

    def _next(self) -> float:
        """Seconds until the next failure."""
        return self.dice.expovariate(self.run.per_second) if self.run.per_second else math.inf


def _percentile(ordered: list[float], part: float) -> float:
    place = part * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
