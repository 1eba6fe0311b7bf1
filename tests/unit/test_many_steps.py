"""Steps of a search worked out together, against the engine one by one."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from itertools import product

import pytest

from parallelism.schedules.orders import Action, order_of
from parallelism.simulator.engine import run
from parallelism.simulator.many import Candidate, step_seconds_of
from parallelism.simulator.plan import Cost, Issue, Part, StagePlan, StepPlan, Unit
from parallelism.simulator.program import program_of
from suite.layout import Layout, Schedule

pytestmark = pytest.mark.unit


@cache
def orders(schedule: Schedule, pp: int, micro_batches: int) -> tuple[tuple[Action, ...], ...]:
    """Of every rank; two stages a rank where the schedule wants them."""
    virtual = schedule.stages_a_rank[0]
    return tuple(
        order_of(Layout(pp=pp, schedule=schedule, virtual_stages=virtual), micro_batches, place) for place in range(pp)
    )


def candidate(rng: random.Random, schedule: Schedule, pp: int, micro_batches: int, gather: bool) -> Candidate:
    """Stages of two kinds of units, each time up to a tenth above 1 s."""

    def seconds() -> float:
        return 1 + rng.random() / 10

    def unit() -> Unit:
        shard = {"gather": seconds() / 2, "reduce": seconds() / 2} if gather else {}
        return Unit("unit", Cost(seconds(), 0.1), Cost(seconds(), 0.0, ((Part.TENSOR, 0.2),)), Cost(seconds()), **shard)

    stages = [StagePlan((unit(),) * 3 + (unit(),), seconds() / 10) for _ in range(pp * schedule.stages_a_rank[0])]
    of = orders(schedule, pp, micro_batches)
    plan = StepPlan(of, tuple(stages), tuple(Cost(seconds(), 2 * seconds()) for _ in range(pp)), agree=0.1)
    return Candidate(plan, micro_batches, lambda count: orders(schedule, pp, count))


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("schedule", list(Schedule))
def test_short_steps_are_those_of_the_engine(schedule: Schedule, gather: bool) -> None:
    rng = random.Random(1)
    found = [candidate(rng, schedule, pp, 8, gather) for pp in (2, 4) for _ in range(3)]
    expected = [run(program_of(item.plan).graph).total for item in found]
    assert step_seconds_of(found) == pytest.approx(expected, rel=1e-12)


def slow_host(unit: Unit) -> Unit:
    """One that the device has to wait for."""
    return replace(unit, forward=replace(unit.forward, host=5.0), inputs=replace(unit.inputs, host=2.0))


@pytest.mark.parametrize("schedule", list(Schedule))
def test_communication_is_issued_as_the_engine_issues_it(schedule: Schedule) -> None:
    rng = random.Random(4)
    apart = Cost(0.2, 0.1), Cost(0.0, 0.0, ((Part.TENSOR, 0.3),))  # of halves that are run apart
    found = []
    for pp, gathers, reductions in product((1, 2), Issue, Issue):
        if pp == 1 and schedule is not Schedule.ONE_F_ONE_B:
            continue
        item = candidate(rng, schedule, pp, 6, gather=True)
        stages = tuple(
            StagePlan((replace(first, is_kept=True, gather=0.3, apart=apart), slow_host(first), last), 0.4)
            for first, _, _, last in (stage.units for stage in item.plan.stages)
        )
        plan = replace(
            item.plan, stages=stages, gathers=gathers, reductions=reductions, agree=rng.choice([0.0, 0.3]),
            gathers_ahead=rng.choice([(0, 0), (1, 1), (2, 1)]), keeps_after_forward=rng.random() < 0.5,
            reduces_each=rng.random() < 0.5,
        )  # fmt: skip
        found.append(replace(item, plan=plan))
    expected = [run(program_of(item.plan).graph).total for item in found]
    assert step_seconds_of(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", [Schedule.GPIPE, Schedule.ONE_F_ONE_B, Schedule.ZBV, Schedule.INTERLEAVED])
def test_long_steps_are_cut_short_within_two_hundredths(schedule: Schedule) -> None:
    rng = random.Random(2)
    found = [candidate(rng, schedule, 4, 42 if schedule is not Schedule.INTERLEAVED else 44, False) for _ in range(4)]
    expected = [run(program_of(item.plan).graph).total for item in found]
    assert step_seconds_of(found) == pytest.approx(expected, rel=0.02)


def test_without_a_pipeline_every_micro_batch_but_the_first_few_is_like_the_last() -> None:
    rng = random.Random(3)
    found = [candidate(rng, Schedule.ONE_F_ONE_B, 1, 100, True) for _ in range(4)]
    expected = [run(program_of(item.plan).graph).total for item in found]
    assert step_seconds_of(found) == pytest.approx(expected, rel=1e-12)
