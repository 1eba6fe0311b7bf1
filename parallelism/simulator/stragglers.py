"""A step among unequal ranks: named slow ones, and jitter. Unequal replicas are simulated, equal ones once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from parallelism.simulator.engine import run
from parallelism.simulator.jitter import Floats, Jitter, expected_of_maximum
from parallelism.simulator.long_run import Spread
from parallelism.simulator.plan import Cost, StagePlan, StepPlan, Unit
from parallelism.simulator.program import program_of
from parallelism.simulator.slow_rank import SlowRank
from suite.layout import Layout
from suite.parse import require

#: factors of each pipeline rank's compute
Factors = tuple[float, ...]
#: a step's seconds, given them
StepSeconds = Callable[[Factors], float]

#: standard deviations between which a step without a pipeline is run, and at how many
_LOW, _HIGH, _KNOTS = -5.0, 6.0, 17


class Meeting(StrEnum):
    """Where data-parallel replicas wait for one another."""

    ONCE = "once"  # at the end of the step (DDP): the slowest replica is the step
    EACH_UNIT = "each unit"  # parameters are gathered from all (FSDP): every stage is as slow as its slowest copy


def meeting_of(plan: StepPlan) -> Meeting:
    """Where this plan's replicas wait for one another."""
    return Meeting.EACH_UNIT if any(stage.is_sharded for stage in plan.stages) else Meeting.ONCE


def slowed(plan: StepPlan, factors: Factors) -> StepPlan:
    """The plan with each pipeline rank's compute and host time so many times as long. Messages take what they took:
    a link is not slower because a rank is. SpecError for a factor too many or too few."""
    require(len(factors) == len(plan.orders), f"slow: {len(factors)} factors for {len(plan.orders)} pipeline ranks")
    places = plan.place_of_stage
    stages = tuple(_slow_stage(stage, factors[places[number]]) for number, stage in enumerate(plan.stages))
    finish = tuple(_slow_cost(cost, factor) for cost, factor in zip(plan.finish, factors, strict=True))
    return replace(plan, stages=stages, finish=finish)


def seconds_of(plan: StepPlan) -> StepSeconds:
    """A step's seconds by the engine, for any factors of its pipeline ranks; each combination is run once."""
    known: dict[Factors, float] = {}

    def seconds(factors: Factors) -> float:
        if factors not in known:
            program = program_of(slowed(plan, factors))
            known[factors] = run(program.graph, program.sharing).total
        return known[factors]

    return seconds


def step_seconds(seconds: StepSeconds, layout: Layout, slow: Sequence[SlowRank], meeting: Meeting) -> float:
    """The step with these slow ranks. SpecError for a rank that is not there, or named twice.

    Tensor and context ranks of one place wait for one another in every block, so a place is as slow as its slowest.
    Not counted: with `ONCE`, that a stage's reduction also waits for the same stage of other replicas, which matters
    where several replicas are slow in different stages.
    """
    return _slowest(seconds, _table(layout, slow).max(axis=2), meeting)


def jittered_seconds(
    seconds: StepSeconds,
    layout: Layout,
    slow: Sequence[SlowRank],
    jitter: Jitter,
    meeting: Meeting,
    samples: int = 16,
    seed: int = 0,
    candidates: int = 2,
) -> Spread:
    """The step's mean and spread where every rank's time also varies from step to step, by seeded draws.

    Of each draw's replicas so many are run as a first-order response to each place's pace puts highest; the slowest of
    them is the step. SpecError for no samples or candidates.
    """
    for name, count in (("samples", samples), ("candidates", candidates)):
        require(count >= 1, f"{name}: must be at least 1, got {count}")
    own, dice = _table(layout, slow), np.random.default_rng(seed)
    response = None
    found = []
    for _ in range(samples):
        factors = (own * jitter.factors(dice.standard_normal(own.shape))).max(axis=2)
        if meeting is Meeting.ONCE and len(factors) > candidates:
            response = response or _Response.of(seconds, layout.pp, float(factors.max()))
            factors = factors[np.argsort(-response.to(factors), kind="stable")[:candidates]]
        found.append(_slowest(seconds, factors, meeting))
    return Spread.of(found)


def expected_seconds(seconds: StepSeconds, layout: Layout, slow: Sequence[SlowRank], jitter: Jitter) -> float:
    """The mean step without a pipeline, from the exact distribution of the slowest of all ranks.

    The step is run at 17 factors, a straight line between two: as it is wherever the same queue stays the longest.
    SpecError with pp > 1: `jittered_seconds` draws.
    """
    require(layout.pp == 1, f"layout.pp: {layout.pp} pipeline ranks differ from one another; draw samples instead")
    factors, counts = np.unique(_table(layout, slow), return_counts=True)
    groups = [(float(factor), int(count)) for factor, count in zip(factors, counts, strict=True)]
    knots = factors[-1] * np.unique(jitter.factors(np.linspace(_LOW, _HIGH, _KNOTS)))
    times = np.array([seconds((float(knot),)) for knot in knots])

    def line(values: Floats) -> Floats:
        if len(knots) == 1:
            return np.full_like(values, times[0])
        after = np.clip(np.searchsorted(knots, values), 1, len(knots) - 1)
        slope = (times[after] - times[after - 1]) / (knots[after] - knots[after - 1])
        return np.asarray(times[after] + slope * (values - knots[after]))

    return expected_of_maximum(line, jitter, groups)


@dataclass(frozen=True)
class _Response:
    """How a step answers to one place's pace and to all at once, in seconds a unit of factor."""

    each: Floats
    all: float

    @classmethod
    def of(cls, seconds: StepSeconds, places: int, factor: float) -> _Response:
        """From steps with one place, then all, at this factor."""
        more = max(factor - 1, 1e-3)
        base = seconds((1.0,) * places)
        paces = [tuple(1 + more * (place == slow) for place in range(places)) for slow in range(places)]
        each = np.array([seconds(pace) - base for pace in paces]) / more
        return cls(each, (seconds((1 + more,) * places) - base) / more)

    def to(self, factors: Floats) -> Floats:
        """Seconds, but for a constant, of replicas with these factors: the place that weighs most paces the pipeline,
        all of them fill and drain it."""
        late = factors - 1
        return np.asarray((late * self.each).max(axis=1) + (self.all - self.each.max()) * late.mean(axis=1))


def _table(layout: Layout, slow: Sequence[SlowRank]) -> Floats:
    """Every rank's own factor: replicas x pipeline ranks x ranks that share a place."""
    replicas, width = layout.data_ranks, layout.world_size // layout.pp // layout.data_ranks
    table = np.ones((layout.pp, replicas, width))  # the rank grid: pp, then data ranks, then the rest
    flat = table.reshape(-1)
    for item in slow:
        good = item.rank < layout.world_size
        require(good, f"slow: rank {item.rank} is not among the {layout.world_size} of the layout")
        require(flat[item.rank] == 1, f"slow: rank {item.rank} is named twice")
        flat[item.rank] = item.factor
    return np.swapaxes(table, 0, 1)


def _slowest(seconds: StepSeconds, factors: Floats, meeting: Meeting) -> float:
    """The step of replicas with these factors of their pipeline ranks."""
    if meeting is Meeting.EACH_UNIT:
        return seconds(tuple(map(float, factors.max(axis=0))))
    return max(seconds(tuple(map(float, row))) for row in _undominated(np.unique(factors, axis=0)))


def _undominated(rows: Floats) -> list[Floats]:
    """Those that no other is slower than in every place: a step never gets faster where a rank gets slower."""
    kept: list[Floats] = []
    for row in rows[np.argsort(-rows.sum(axis=1), kind="stable")]:
        if not any((row <= other).all() for other in kept):
            kept.append(row)
    return kept


def _slow_stage(stage: StagePlan, factor: float) -> StagePlan:
    return replace(stage, units=tuple(_slow_unit(unit, factor) for unit in stage.units)) if factor != 1 else stage


def _slow_unit(unit: Unit, factor: float) -> Unit:
    return replace(
        unit,
        forward=_slow_cost(unit.forward, factor),
        inputs=_slow_cost(unit.inputs, factor),
        weights=_slow_cost(unit.weights, factor),
        rerun=_slow_cost(unit.rerun, factor),
        apart=(_slow_cost(unit.apart[0], factor), _slow_cost(unit.apart[1], factor)),
    )


def _slow_cost(cost: Cost, factor: float) -> Cost:
    return replace(cost, compute=cost.compute * factor, host=cost.host * factor)
