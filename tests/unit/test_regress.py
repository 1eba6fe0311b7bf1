"""`compare RUN_A RUN_B`: verdicts of hand-made readings."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from reports.judge import Judgement, Limits, Pair, Verdict, judge
from reports.measures import MEASURES
from tests.unit.regress_samples import TEN, scaled

pytestmark = pytest.mark.unit

STEP, MEMORY, SENT, LOSS = (
    next(each for each in MEASURES if each.name == name)
    for name in ("step_seconds", "memory_bytes", "bytes_sent", "loss_nats")
)
RATE = next(each for each in MEASURES if each.name == "tokens_per_second")


def judged(before: list[list[float]], after: list[list[float]], measure: Any = STEP, drift: float = 0.0) -> Judgement:
    return judge([Pair(measure, before, after, drift)], Limits())[0]


# --- verdicts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "factor, verdict",
    [(1.2, "worse"), (1.03, "worse"), (1 / 1.2, "improved"), (1.0, "same"), (1.01, "same")],
)
def test_times_that_hardly_scatter(factor: float, verdict: str) -> None:
    found = judged([TEN], [scaled(factor)])
    assert found.verdict.value == verdict
    assert found.change == pytest.approx(factor - 1)
    assert found.interval
    assert found.interval.low <= factor - 1 <= found.interval.high


def test_of_tokens_a_second_more_is_better() -> None:
    assert judged([TEN], [scaled(1.2)], RATE).verdict is Verdict.IMPROVED
    assert judged([TEN], [scaled(0.8)], RATE).verdict is Verdict.WORSE


def test_a_time_and_its_rate_have_one_verdict() -> None:
    """Launches 30 % apart, a change of 45 %: as a rate that is a loss of 32 %."""
    before, after = [TEN, scaled(1.3)], [scaled(1.65), scaled(1.68)]
    rates = [[[1 / value for value in launch] for launch in side] for side in (before, after)]
    found, rate = judged(before, after), judged(*rates, RATE)
    assert (found.verdict, rate.verdict) == (Verdict.WORSE, Verdict.WORSE)
    assert found.needed == pytest.approx(0.3, abs=1e-3)
    assert rate.needed == pytest.approx(0.3, abs=1e-3)
    assert (found.change, rate.change) == (pytest.approx(0.45, abs=0.01), pytest.approx(-0.32, abs=0.01))


def test_what_scatters_too_widely_is_noisy_and_not_the_same() -> None:
    wide = [0.7, 1.4, 0.8, 1.3, 1.0, 0.9, 1.2, 1.1]
    found = judged([wide], [[value * 1.05 for value in wide]])
    assert (found.verdict, found.why) == (Verdict.NOISY, "2.00 % could hide")


def test_a_change_below_what_counts_is_the_same_however_sure() -> None:
    eight = [1 + 0.004 * place for place in range(8)]
    found = judged([eight], [[value * 1.019 for value in eight]])
    assert found.p is not None
    assert found.p < 0.05
    assert found.interval
    assert found.interval.high > 0.02  # so that the interval alone would not say it
    assert (found.verdict, found.why) == (Verdict.SAME, "below 2.00 %")


def test_three_readings_a_side_can_show_nothing() -> None:
    found = judged([[1.0, 1.1, 1.2]], [[2.0, 2.1, 2.2]])
    assert (found.verdict, found.why, found.p, found.interval) == (Verdict.NOISY, "too few readings", 0.1, None)


def test_a_change_has_to_exceed_what_launches_of_one_side_differ_by() -> None:
    """The medians of A's launches are 1.0 and 1.25: 12 % over both is no change yet, 40 % is."""
    before = [TEN, scaled(1.25)]
    near, far = judged(before, [scaled(1.26), scaled(1.27)]), judged(before, [scaled(1.6), scaled(1.61)])
    assert near.needed == pytest.approx(0.25)
    assert (near.verdict, near.why) == (Verdict.NOISY, "launches differ by 25 %")
    assert far.verdict is Verdict.WORSE


def test_a_change_has_to_exceed_what_the_machine_changed_by() -> None:
    assert judged([TEN], [scaled(1.1)], drift=0.2).verdict is Verdict.NOISY
    assert judged([TEN], [scaled(1.1)], drift=0.2).why == "the machine changed by 20 %"
    assert judged([TEN], [scaled(1.3)], drift=0.2).verdict is Verdict.WORSE


def test_p_is_adjusted_over_all_cases() -> None:
    """Five and five readings: p is at least 2 / 252; of seven cases Holm leaves 0.056 of it, of six 0.048."""
    five = [1.0, 1.01, 1.02, 1.03, 1.04]
    pair = Pair(STEP, [five], [[value * 2 for value in five]])
    assert {each.verdict for each in judge([pair] * 6, Limits())} == {Verdict.WORSE}
    found = judge([pair] * 7, Limits())
    assert {each.verdict for each in found} == {Verdict.NOISY}
    assert found[0].p == pytest.approx(7 * 2 / 252)


@pytest.mark.parametrize(
    "measure, before, after, verdict",
    [
        (SENT, 4746240.0, 4746240.0, "same"),
        (SENT, 4746240.0, 4746244.0, "worse"),
        (SENT, 4746240.0, 4746236.0, "improved"),
        (SENT, 0.0, 4.0, "worse"),
        (MEMORY, 33967388.0, 33967396.0, "same"),  # as two real runs of one commit came out
        (MEMORY, 33967388.0, 33977388.0, "worse"),
        (LOSS, 3.5, 3.5001, "same"),
        (LOSS, 3.5, 3.6, "worse"),
        (LOSS, 3.5, math.nan, "worse"),
        (LOSS, math.nan, 3.5, "improved"),
        (LOSS, math.nan, math.nan, "same"),
    ],
)
def test_what_is_counted_has_no_test(measure: Any, before: float, after: float, verdict: str) -> None:
    found = judged([[before]], [[after]], measure)
    assert (found.verdict.value, found.p, found.test) == (verdict, None, None)


def test_counts_of_several_launches_differ_where_their_ranges_do_not_meet() -> None:
    assert judged([[100.0], [104.0]], [[103.0], [108.0]], SENT).verdict is Verdict.SAME
    assert judged([[100.0], [104.0]], [[105.0], [108.0]], SENT).verdict is Verdict.WORSE


def test_how_often_runs_of_the_same_code_are_called_worse() -> None:
    """Of 200 pairs of 8 cases, 10 readings each of one distribution: Holm holds any false call a pair to 5 %."""
    draw, trials, false = random.Random(11), 200, 0
    for _ in range(trials):
        sides = [[[draw.lognormvariate(0, 0.15) for _ in range(10)] for _ in range(2)] for _ in range(8)]
        found = judge([Pair(STEP, [before], [after]) for before, after in sides], Limits())
        false += any(each.is_found for each in found)
    assert false <= trials * 0.05 + 3 * math.sqrt(trials * 0.05 * 0.95)
