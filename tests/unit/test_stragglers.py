"""Slow ranks and jitter: order statistics against tables and draws, and steps of unequal replicas by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from parallelism.schedules.orders import order_of
from parallelism.simulator.jitter import Jitter, JitterKind, expected_maximum, expected_of_maximum
from parallelism.simulator.plan import Cost, Issue, Part, StagePlan, StepPlan, Unit
from parallelism.simulator.slow_rank import SlowRank
from parallelism.simulator.stragglers import (
    Factors,
    Meeting,
    expected_seconds,
    jittered_seconds,
    meeting_of,
    seconds_of,
    slowed,
    step_seconds,
)
from suite.layout import Layout
from suite.parse import SpecError, from_mapping, to_mapping

pytestmark = pytest.mark.unit

#: mean of the largest of n standard normal numbers: 1/sqrt(pi), 3/(2 sqrt(pi)), then H. L. Harter, Expected values of
#: normal order statistics, Biometrika 48, 1961
LARGEST = {1: 0.0, 2: 1 / math.sqrt(math.pi), 3: 1.5 / math.sqrt(math.pi), 5: 1.16296, 10: 1.53875, 100: 2.50759}


@pytest.mark.parametrize(("ranks", "deviations"), LARGEST.items())
def test_the_slowest_of_many_normal_ranks_is_as_tabled(ranks: int, deviations: float) -> None:
    assert expected_maximum(Jitter(0.1, JitterKind.NORMAL), ranks) == pytest.approx(1 + 0.1 * deviations, abs=1e-6)


def test_the_mean_of_one_rank_is_one_and_more_ranks_or_jitter_are_slower() -> None:
    for kind in JitterKind:
        means = [expected_maximum(Jitter(0.05, kind), ranks) for ranks in (1, 8, 1024, 100_000)]
        assert means[0] == pytest.approx(1, abs=1e-6)
        assert means == sorted(means)
        assert expected_maximum(Jitter(0, kind), 1024) == 1
        assert expected_maximum(Jitter(0.1, kind), 8) > means[1]


@pytest.mark.parametrize("jitter", [Jitter(0.3), Jitter(0.2, JitterKind.NORMAL)])
def test_draws_have_the_expected_maximum(jitter: Jitter) -> None:
    """Thirty ranks, and one that is 20 % slower on average."""
    drawn = jitter.factors(np.random.default_rng(1).standard_normal((20_000, 31)))
    assert drawn[:, 0].mean() == pytest.approx(1, abs=0.01)
    assert drawn[:, 0].std() == pytest.approx(jitter.sigma, rel=0.03)
    drawn[:, 0] *= 1.2
    largest = drawn.max(axis=1)
    error = largest.std() / math.sqrt(len(largest))
    exact = expected_of_maximum(lambda values: values, jitter, ((1.0, 30), (1.2, 1)))
    assert largest.mean() == pytest.approx(exact, abs=3.3 * error)
    assert error < 0.003


def test_a_rank_slower_than_all_jitter_is_the_maximum() -> None:
    assert expected_of_maximum(lambda values: values, Jitter(0.001), ((1.0, 63), (1.5, 1))) == pytest.approx(1.5)


# --- steps ---------------------------------------------------------------------------------------------------


def plan(pp: int, micro_batches: int, gather: float = 0.0, send: float = 0.0, blocking: float = 0.0) -> StepPlan:
    """Forward 1 s and backward 2 s a stage and micro-batch, 1F1B; an update of 1 s."""
    unit = Unit("block", Cost(1.0, blocking=((Part.TENSOR, blocking),)), Cost(1.0), Cost(1.0), gather=gather)
    orders = tuple(tuple(order_of(Layout(pp=pp), micro_batches, rank)) for rank in range(pp))
    return StepPlan(orders, (StagePlan((unit,), send),) * pp, (Cost(1.0),) * pp, gathers=Issue.STREAMS)


def test_a_slow_pipeline_rank_is_the_steady_state() -> None:
    """Two stages, four micro-batches: (4 + 1) x 3 s and the update. The last one at twice the pace of the first:
    1 s to fill, 4 x 6 s, 2 s to drain, and the first one's update of 1 s."""
    seconds = seconds_of(plan(2, 4))
    assert seconds((1.0, 1.0)) == 16
    assert seconds((1.0, 2.0)) == 1 + 24 + 2 + 1
    assert seconds((2.0, 2.0)) == 32


def test_messages_do_not_slow_down_with_a_rank() -> None:
    slow = slowed(plan(1, 1, blocking=0.25), (2.0,))
    assert slow.stages[0].units[0].forward == Cost(2.0, 0.0, ((Part.TENSOR, 0.25),))
    assert seconds_of(plan(1, 1, blocking=0.25))((2.0,)) == 2 * 4 + 0.25
    assert slow.finish == (Cost(2.0),)
    issued = replace(plan(1, 1), finish=(Cost(1.0, host=0.5),))
    assert slowed(issued, (2.0,)).finish == (Cost(2.0, host=1.0),)  # its host is slow, too


def test_a_slow_rank_delays_its_own_replica_and_the_slowest_replica_is_the_step() -> None:
    """pp2 x dp2 x tp2: rank 7 is on the second stage of replica 1, rank 0 on the first stage of replica 0."""
    layout, asked = Layout(pp=2, dp=2, tp=2), []

    def seconds(factors: Factors) -> float:
        asked.append(factors)
        return sum(factors)

    slow = (SlowRank(7, 1.5), SlowRank(0, 1.2))
    assert step_seconds(seconds, layout, slow, Meeting.ONCE) == 2.5
    assert sorted(asked) == [(1.0, 1.5), (1.2, 1.0)]
    assert step_seconds(seconds, layout, slow, Meeting.EACH_UNIT) == pytest.approx(2.7)


def test_equal_replicas_are_simulated_once() -> None:
    asked = []
    layout = Layout(pp=2, dp=64)
    step_seconds(lambda factors: asked.append(factors) or 1.0, layout, (SlowRank(3, 1.5),), Meeting.ONCE)  # type: ignore[func-returns-value]
    assert asked == [(1.5, 1.0)]  # the others are faster in no place and slower in none


def test_where_replicas_meet() -> None:
    assert meeting_of(plan(1, 1)) is Meeting.ONCE
    assert meeting_of(plan(1, 1, gather=0.1)) is Meeting.EACH_UNIT


def test_jitter_over_a_step_that_is_linear_is_the_expected_maximum() -> None:
    """Sixteen ranks without a pipeline, one of them slow: exact, and as drawn."""
    layout, slow, jitter = Layout(dp=16), (SlowRank(5, 1.05),), Jitter(0.05)
    seconds = seconds_of(plan(1, 3))
    exact = expected_seconds(seconds, layout, slow, jitter)
    by_hand = 10 * expected_of_maximum(lambda values: values, jitter, ((1.0, 15), (1.05, 1)))
    assert exact == pytest.approx(by_hand, rel=1e-6)
    drawn = jittered_seconds(lambda factors: 10 * factors[0], layout, slow, jitter, Meeting.ONCE, samples=2000)
    assert drawn.mean == pytest.approx(exact, abs=3.3 * drawn.standard_error)
    assert expected_seconds(seconds, layout, slow, Jitter()) == pytest.approx(10.5)


def test_the_replicas_that_look_slowest_are_the_slowest() -> None:
    """Four places, sixteen replicas, twelve draws: running two of them finds what running all finds, but for 0.1 %."""
    asked = []
    seconds = seconds_of(plan(4, 8))

    def counted(factors: Factors) -> float:
        asked.append(factors)
        return seconds(factors)

    layout, jitter = Layout(pp=4, dp=16), Jitter(0.05)
    few = jittered_seconds(counted, layout, (), jitter, Meeting.ONCE, samples=12)
    assert len(asked) <= 12 * 2 + 4 + 2
    every = jittered_seconds(seconds, layout, (), jitter, Meeting.ONCE, samples=12, candidates=16)
    assert every.mean * 0.999 <= few.mean <= every.mean
    assert every.mean > 34  # (8 + 3) x 3 s and the update, without jitter


def test_draws_repeat_and_a_pipeline_of_many_replicas_is_slower_than_of_one() -> None:
    seconds, jitter = seconds_of(plan(2, 4)), Jitter(0.1)
    few = jittered_seconds(seconds, Layout(pp=2), (), jitter, Meeting.ONCE, samples=20, seed=3)
    assert few == jittered_seconds(seconds, Layout(pp=2), (), jitter, Meeting.ONCE, samples=20, seed=3)
    assert few != jittered_seconds(seconds, Layout(pp=2), (), jitter, Meeting.ONCE, samples=20, seed=4)
    many = jittered_seconds(seconds, Layout(pp=2, dp=8), (), jitter, Meeting.ONCE, samples=20, seed=3)
    each = jittered_seconds(seconds, Layout(pp=2, dp=8), (), jitter, Meeting.EACH_UNIT, samples=20, seed=3)
    assert 16 < few.mean < many.mean < each.mean


# --- nouns ---------------------------------------------------------------------------------------------------


def test_nouns_survive_json_and_text() -> None:
    jitter = Jitter(0.03, JitterKind.NORMAL)
    assert from_mapping(Jitter, to_mapping(jitter), "jitter") == jitter
    assert SlowRank.parse("17:1.1") == SlowRank(17, 1.1)
    assert to_mapping(SlowRank(17, 1.1)) == "17:1.1"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Jitter(-0.1), "jitter.sigma: must be finite and not negative, got -0.1"),
        (lambda: Jitter(0.3, JitterKind.NORMAL), "jitter.sigma: a normal time of sigma 0.3 would be negative"),
        (lambda: SlowRank(-1, 2.0), "slow: a rank is not negative, got -1"),
        (lambda: SlowRank(1, 0.0), "slow: a factor is positive and finite, got 0.0"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)):
        make()


def test_ranks_that_are_not_there_are_refused() -> None:
    for text in ("3", "x:2", "3:", "3:2:1"):
        with pytest.raises(SpecError, match=r"is not RANK:FACTOR, as in 17:1\.1"):
            SlowRank.parse(text)
    layout = Layout(dp=4)
    for slow, said in (
        ((SlowRank(4, 2),), "slow: rank 4 is not among the 4 of the layout"),
        ((SlowRank(1, 2), SlowRank(1, 3)), "slow: rank 1 is named twice"),
    ):
        with pytest.raises(SpecError, match=said):
            step_seconds(lambda factors: 1.0, layout, slow, Meeting.ONCE)
    with pytest.raises(SpecError, match="slow: 1 factors for 2 pipeline ranks"):
        slowed(plan(2, 2), (1.0,))
    with pytest.raises(SpecError, match="samples: must be at least 1, got 0"):
        jittered_seconds(lambda factors: 1.0, layout, (), Jitter(0.1), Meeting.ONCE, samples=0)
    with pytest.raises(SpecError, match=r"layout.pp: 2 pipeline ranks differ"):
        expected_seconds(lambda factors: 1.0, Layout(pp=2), (), Jitter(0.1))
    with pytest.raises(SpecError, match="ranks: must be at least 1, got 0"):
        expected_maximum(Jitter(0.1), 0)
