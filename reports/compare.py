"""The two paths meet: estimates and measurements of a case joined on (quantity, component, rank, moment).

Bytes and seconds; per rank unless the name says otherwise. Pure: nothing is read, written or printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from reports.comparison import Comparison
from reports.losses import LossCurve, curve_of
from reports.serving_rows import ServingComparison, serving_of
from reports.speed import Speed, speed_of
from reports.traced import traced_rows
from reports.traffic import fullest, traffic_rows
from suite.case import Case
from suite.collectives import TrafficEstimate
from suite.passes import ON_RANKS, Pass
from suite.peers import Peer, PeerAnswer
from suite.record import (
    STATE,
    Component,
    Measurement,
    MemoryEstimate,
    Moment,
    Outcome,
    Quantity,
    Sample,
    ServingEstimate,
    TimeEstimate,
)  # fmt: skip
from suite.stats import relative_error
from suite.timeline import Timeline

#: Moments at which the state's size is a matter of counting: every gradient exists, or none does.
STATE_MOMENTS = (Moment.AFTER_BACKWARD, Moment.STEADY)

#: What a case without a measurement is called.
NOT_RUN = "not run"


@dataclass(frozen=True)
class CaseResult:
    """A case with what was predicted for it and what was measured; None where that has not been done."""

    case: Case
    memory: tuple[MemoryEstimate, ...] = ()  # one a rank
    time: TimeEstimate | None = None
    measurement: Measurement | None = None
    unpredicted: str = ""  # why there is no estimate, where there is none
    traffic: tuple[TrafficEstimate, ...] = ()  # one a rank
    timelines: tuple[Timeline, ...] = ()  # one a rank
    peers: tuple[PeerAnswer, ...] = ()  # what other tools say of it
    traced: tuple[Sample, ...] = ()  # of the ranks that were traced
    untraced: str = ""  # why none was, where that was tried
    serving: ServingEstimate | None = None  # of a served case, which has no estimate of training
    assumed: tuple[MemoryEstimate, ...] = ()  # where `memory` is of a recorded routing: of the one assumed before it
    earlier: tuple[Measurement, ...] = ()  # of launches before the one that `measurement` is of


@dataclass(frozen=True)
class Run:
    """A run of a suite: its results in the order of the suite, and where and when they were got."""

    name: str
    created: str
    suite: str
    command: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[CaseResult, ...] = ()
    peers: tuple[Peer, ...] = ()  # the tools that were to be asked
    passes: tuple[Pass, ...] = ON_RANKS


@dataclass(frozen=True, slots=True)
class Instant:
    """Bytes a rank holds at a moment."""

    bytes: float
    rank: int
    moment: Moment


@dataclass(frozen=True, slots=True)
class Peak:
    """The fullest rank at its fullest moment, as predicted and as measured; the two may be different instants."""

    predicted: Instant | None
    measured: Instant | None

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured of the two peaks."""
        return relative_error(*self._bytes)

    @property
    def difference(self) -> float | None:
        """predicted - measured, bytes."""
        predicted, measured = self._bytes
        return None if predicted is None or measured is None else predicted - measured

    @property
    def is_same_moment(self) -> bool:
        """Do prediction and measurement name the same moment?"""
        return bool(self.predicted and self.measured and self.predicted.moment is self.measured.moment)

    @property
    def _bytes(self) -> tuple[float | None, float | None]:
        return (self.predicted.bytes if self.predicted else None, self.measured.bytes if self.measured else None)


@dataclass(frozen=True)
class CaseComparison:
    """Everything a report says about a case. Measured numbers are taken from a case that ended `ok` only:
    what a run that died left behind has not seen the whole step, and its maximum is not a peak."""

    result: CaseResult
    rows: tuple[Comparison, ...]
    peak: Peak
    speed: Speed
    curve: LossCurve
    traffic: tuple[Comparison, ...] = ()  # bytes sent, payload and calls, by rank and collective (None: the total)
    traced: tuple[Comparison, ...] = ()  # totals of traced ranks at every moment: the trace stands as the measured side
    serving: ServingComparison | None = None  # of a served case; it has neither a step nor a peak nor a loss curve

    @property
    def case(self) -> Case:
        """The case compared."""
        return self.result.case

    @property
    def status(self) -> str:
        """The outcome's name, or NOT_RUN."""
        return self.result.measurement.outcome.value if self.result.measurement else NOT_RUN

    @property
    def is_ok(self) -> bool:
        """Did the case run to its end?"""
        return self.status == Outcome.OK.value

    @property
    def reason(self) -> str:
        """Why it is not ok; empty where it is."""
        return self.result.measurement.reason if self.result.measurement else ""

    @cached_property
    def _by_key(self) -> dict[tuple[Component | None, int | None, Moment | None], Comparison]:
        return {(row.component, row.rank, row.moment): row for row in self.rows if row.quantity is Quantity.MEMORY}

    def memory(self, component: Component | None, rank: int, moment: Moment) -> Comparison | None:
        """The memory row with that key (component None: the total); None where neither side has it."""
        return self._by_key.get((component, rank, moment))

    def components_at(self, instant: Instant) -> tuple[Comparison, ...]:
        """The memory rows by component at an instant's rank and moment."""
        return tuple(row for row in self._memory_rows if (row.rank, row.moment) == (instant.rank, instant.moment))

    def rows_of_rank(self, rank: int) -> tuple[Comparison, ...]:
        """The memory rows of a rank: totals and components of every moment."""
        return tuple(row for row in self.rows if row.quantity is Quantity.MEMORY and row.rank == rank)

    def peak_of_rank(self, rank: int) -> Peak:
        """One rank's fullest moments."""
        rows = tuple(row for row in self.totals if row.rank == rank)
        return Peak(_peak(rows, "predicted"), _peak(rows, "measured"))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks whose memory is predicted or measured, ascending."""
        return tuple(sorted({row.rank for row in self.totals if row.rank is not None}))

    @property
    def totals(self) -> tuple[Comparison, ...]:
        """The memory rows of whole moments, every rank and moment."""
        return tuple(row for row in self.rows if row.quantity is Quantity.MEMORY and row.component is None)

    @property
    def state_rows(self) -> tuple[Comparison, ...]:
        """Parameters, buffers, gradients and optimizer state after the backward pass and between steps.

        Rows that are measured and not zero on both sides: predicting nothing where nothing is proves little.
        """
        return tuple(
            row
            for row in self._memory_rows
            if row.component in STATE
            and row.moment in STATE_MOMENTS
            and row.measured is not None
            and (row.measured or row.predicted)
        )

    @property
    def sent(self) -> Comparison | None:
        """Bytes sent in a step by the rank that sends most; None where no rank is known to send anything."""
        return fullest(self.traffic)

    @property
    def sent_rows(self) -> tuple[Comparison, ...]:
        """Bytes sent by rank and collective, where both sides are known."""
        return tuple(
            row
            for row in self.traffic
            if row.quantity is Quantity.BYTES_SENT and row.collective and None not in (row.predicted, row.measured)
        )

    @property
    def _memory_rows(self) -> tuple[Comparison, ...]:
        return tuple(row for row in self.rows if row.quantity is Quantity.MEMORY and row.component is not None)


def compare_case(result: CaseResult) -> CaseComparison:
    """Join a case's estimate and measurement."""
    measurement = result.measurement
    finished = measurement if measurement and measurement.outcome is Outcome.OK else None
    speed = speed_of(result.time, finished, result.case.tokens_per_step)
    memory = _memory_rows(result.memory, finished)
    serving = serving_of(result.case, result.serving, finished)
    return CaseComparison(
        result=result,
        rows=serving.all_rows if serving else (*memory, *_speed_rows(speed)),
        peak=Peak(_peak(memory, "predicted"), _peak(memory, "measured")),
        speed=speed,
        curve=curve_of(finished),
        traffic=traffic_rows(result.traffic, finished),
        traced=traced_rows(result.memory, result.traced),
        serving=serving,
    )


_Key = tuple[int, Moment, Component | None]
_COMPONENT_ORDER = {component: place for place, component in enumerate((None, *Component))}
_MOMENT_ORDER = {moment: place for place, moment in enumerate(Moment)}


def _memory_rows(estimates: tuple[MemoryEstimate, ...], measurement: Measurement | None) -> tuple[Comparison, ...]:
    """The outer join of the two memory tables: total first, then components, by rank and moment of the step."""
    predicted, measured = _predicted_bytes(estimates), _measured_bytes(measurement)
    keys = sorted(
        predicted.keys() | measured.keys(),
        key=lambda key: (key[0], _MOMENT_ORDER[key[1]], _COMPONENT_ORDER[key[2]]),
    )
    known = {(rank, moment) for rank, moment, component in measured if component is not None}
    rows = []
    for rank, moment, component in keys:
        # Components are exclusive and sum to the total, so one that is absent from a known sum is zero.
        absent_predicted = 0.0 if component is not None and (rank, moment, None) in predicted else None
        absent_measured = 0.0 if component is not None and (rank, moment) in known else None
        key = (rank, moment, component)
        rows.append(
            Comparison(
                Quantity.MEMORY,
                component,
                rank,
                moment,
                predicted.get(key, absent_predicted),
                measured.get(key, absent_measured),
            )
        )
    return tuple(rows)


def _predicted_bytes(estimates: tuple[MemoryEstimate, ...]) -> dict[_Key, float]:
    table: dict[_Key, float] = {}
    for estimate in estimates:
        for moment, components in estimate.by_moment.items():
            table[estimate.rank, moment, None] = sum(components.values())
            table.update({(estimate.rank, moment, component): size for component, size in components.items()})
    return table


def _measured_bytes(measurement: Measurement | None) -> dict[_Key, float]:
    """Measured bytes by key, the largest where a key was read several times; a gap to the total is `unexplained`."""
    table: dict[_Key, float] = {}
    for sample in measurement.samples if measurement else ():
        if sample.quantity is Quantity.MEMORY and sample.moment is not None:
            key = (sample.rank, sample.moment, sample.component)
            table[key] = max(sample.value, table.get(key, sample.value))
    for rank, moment in {(rank, moment) for rank, moment, component in table if component is not None}:
        total = table.get((rank, moment, None))
        parts = sum(size for key, size in table.items() if key[:2] == (rank, moment) and key[2] is not None)
        if total is not None and total != parts:
            key = (rank, moment, Component.UNEXPLAINED)
            table[key] = table.get(key, 0.0) + total - parts
    return table


def _peak(rows: tuple[Comparison, ...], side: Literal["predicted", "measured"]) -> Instant | None:
    """The largest total on that side; of equal ones the lowest rank's earliest moment."""
    instants = [
        Instant(size, row.rank, row.moment)
        for row in rows
        if row.component is None
        and (size := getattr(row, side)) is not None
        and row.rank is not None
        and row.moment is not None
    ]
    return max(instants, key=lambda instant: instant.bytes, default=None)


def _speed_rows(speed: Speed) -> tuple[Comparison, ...]:
    pairs = (
        (Quantity.STEP_TIME, speed.predicted_seconds, speed.measured_seconds),
        (Quantity.THROUGHPUT, speed.predicted_tokens_per_second, speed.tokens_per_second),
    )
    return tuple(
        Comparison(quantity, None, None, None, predicted, measured)
        for quantity, predicted, measured in pairs
        if predicted is not None or measured is not None
    )
