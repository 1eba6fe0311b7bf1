"""A measurement of another tool laid beside the estimate of the case that was run: rank by rank, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from memory.allocator_settings import UNLIMITED, AllocatorSettings
from memory.assessment import Assessment
from memory.estimate import MemoryModel
from parallelism.simulator.plan import COMMUNICATION, Part
from reports.compare import CaseComparison, CaseResult, Peak, compare_case
from reports.comparison import Comparison
from reports.intake.kineto_parts import TracePart
from reports.intake.reading import Reading
from reports.predict import Predictor
from suite.case import Case
from suite.hardware import device
from suite.parse import require
from suite.record import Component, Measurement, MemoryEstimate, Moment, Outcome, Quantity, Sample
from suite.stats import relative_error
from suite.store import EstimateRow
from suite.units import bytes_text

_SPENT = {
    TracePart.COMPUTE: (Part.COMPUTE, Part.RECOMPUTE, Part.OPTIMIZER),
    TracePart.COMMUNICATION: tuple(COMMUNICATION),
    TracePart.IDLE: (Part.HOST, Part.BUBBLE),
}


@dataclass(frozen=True)
class Reserved:
    """What torch's allocator reserves on a rank, bytes."""

    rank: int
    predicted: int | None
    upper: int | None
    """what it is said to stay below"""
    measured: float

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured."""
        return relative_error(self.predicted, self.measured)

    @property
    def is_below_upper(self) -> bool | None:
        """Did the bound hold?"""
        return None if self.upper is None else self.measured <= self.upper


@dataclass(frozen=True)
class TimePart:
    """What of a step goes to one thing, seconds; None where a side does not tell it apart."""

    part: TracePart
    predicted: float | None
    measured: float | None

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured."""
        return relative_error(self.predicted, self.measured)


@dataclass(frozen=True)
class Laid:
    """The two sides, and what a reader has to know of them."""

    case: Case
    reading: Reading
    estimate: EstimateRow
    measurement: Measurement
    comparison: CaseComparison
    """of what was measured, however the run ended"""
    peaks: Mapping[int, Peak]
    """by rank"""
    reserved: tuple[Reserved, ...]
    parts: tuple[TimePart, ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> tuple[Comparison, ...]:
        """What was measured, beside what was predicted for it."""
        return tuple(row for row in self.comparison.rows if row.measured is not None)


def lay(case: Case, reading: Reading, predictor: Predictor, environment: Mapping[str, object]) -> Laid:
    """Join a reading with what the formulas say of `case`. SpecError where it is of another job.

    Only ranks whose memory was measured are predicted: the fullest of other ranks would not be like for like. A peak
    whose moment the file does not tell is held against the moment at which the rank's estimate peaks.
    """
    _check_ranks(case, reading)
    notes = list(reading.notes)
    model, row = MemoryModel(case), predictor(case)
    ranks = sorted({sample.rank for sample in reading.samples if sample.quantity is Quantity.MEMORY})
    estimates = {rank: model.estimate(rank) for rank in ranks}
    samples = _placed(_whole(reading, estimates, notes), estimates, notes)
    kept = sorted({sample.rank for sample in samples if sample.quantity is Quantity.MEMORY})
    if kept:
        shown = [found for found in row.timelines if found.rank in kept]
        row = replace(row, memory=tuple(estimates[rank] for rank in kept), timelines=tuple(shown))
    measurement = Measurement(case.case_id, reading.outcome, samples, reading.reason, environment=dict(environment))
    finished = replace(measurement, outcome=Outcome.OK)
    comparison = compare_case(CaseResult(case, row.memory, row.time, finished, traffic=row.traffic))
    if row.time is not None and row.time.step_seconds is None:
        notes.append(f"no step time is predicted: {row.time.basis}")
    return Laid(
        case,
        reading,
        row,
        measurement,
        comparison,
        {rank: comparison.peak_of_rank(rank) for rank in kept},
        _reserved(model, reading, samples),
        _parts(row, reading),
        tuple(dict.fromkeys(notes)),
    )


def _check_ranks(case: Case, reading: Reading) -> None:
    world = case.layout.world_size
    require(
        reading.world_size in (None, world),
        f"FILE: is of a job of {reading.world_size} ranks, but the case has {world}; give the layout that was run",
    )
    highest = max(sample.rank for sample in reading.samples)
    require(
        highest < world,
        f"FILE: is of rank {highest}, but the case has {world} (0 to {world - 1}); give the layout that was run",
    )


def _whole(reading: Reading, estimates: Mapping[int, MemoryEstimate], notes: list[str]) -> list[Sample]:
    """The samples without the memory of ranks whose count left out the model: it began when the model was there."""
    partial = set()
    for rank, least in reading.least_bytes.items():
        held = estimates[rank].by_moment[Moment.STEADY].get(Component.PARAMETERS, 0)
        if least < held:
            partial.add(rank)
            notes.append(
                f"rank {rank}: memory is not compared: the count began with the profiler, when the model was there"
                f" (it falls to {bytes_text(least)}, parameters alone are {bytes_text(held)}); make the model inside"
            )
    return [each for each in reading.samples if each.quantity is not Quantity.MEMORY or each.rank not in partial]


def _placed(samples: list[Sample], estimates: Mapping[int, MemoryEstimate], notes: list[str]) -> tuple[Sample, ...]:
    """The samples, each of memory at a moment."""
    found = []
    for sample in samples:
        if sample.quantity is Quantity.MEMORY and sample.moment is None:
            moment = estimates[sample.rank].peak_moment
            sample = replace(sample, moment=moment)
            notes.append(f"rank {sample.rank}: the file does not tell when it peaks: held against {moment}")
        found.append(sample)
    return tuple(found)


def _reserved(model: MemoryModel, reading: Reading, samples: tuple[Sample, ...]) -> tuple[Reserved, ...]:
    """Of every rank whose reserve was measured; nothing is predicted for a device without such an allocator."""
    settings, rows = _settings(reading.allocator), []
    for sample in samples:
        if sample.quantity is not Quantity.RESERVED:
            continue
        fate = Assessment(model, device(model.case.cluster.device), settings, sample.rank)
        upper = fate.reserved_upper_bytes if fate.has_allocator else None
        rows.append(Reserved(sample.rank, fate.reserved_bytes, upper, sample.value))
    return tuple(rows)


def _settings(said: Mapping[str, object]) -> AllocatorSettings:
    """What the file says the allocator was set to; a limit below 1 (torch writes -1) is none."""
    split = said.get("max_split_size")
    limit = split if type(split) is int and 0 < split < UNLIMITED else UNLIMITED
    return AllocatorSettings(said.get("expandable_segments") is True, limit)


def _parts(row: EstimateRow, reading: Reading) -> tuple[TimePart, ...]:
    """The parts that the trace tells apart; nothing where it tells none."""
    if not reading.parts_seconds:
        return ()
    said = row.time.parts_seconds if row.time else {}
    found = []
    for part in TracePart:
        names = [each.value for each in _SPENT.get(part, ())]
        predicted = sum(said.get(name, 0.0) for name in names) if said and names else None
        found.append(TimePart(part, predicted, reading.parts_seconds.get(part.value)))
    return tuple(found)
