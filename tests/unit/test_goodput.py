"""Goodput, checkpoint intervals and lived runs: closed forms by hand, limits, and each model against the other."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallelism.simulator.checkpoints import best_interval, daly_interval, young_interval
from parallelism.simulator.failures import Checkpoint, Failures, Recovery, Reliability
from parallelism.simulator.goodput import goodput, longest_restart_s, lost_work_s, shares, waiting_share
from parallelism.simulator.long_run import MOST_FAILURES, Spread, lives
from suite.parse import SpecError, from_mapping, to_mapping
from tests.unit.refusals import refused

pytestmark = pytest.mark.unit

MTBF = 10_000.0  # seconds, of the job


def reliability(
    blocking: float = 30.0, writing: float = 0.0, mtbf: float = MTBF, devices: int = 8, **recovery: float
) -> Reliability:
    failures = Failures(devices, 3600 / mtbf / devices)
    return Reliability(failures, Checkpoint(blocking, writing), Recovery(**recovery))  # type: ignore[arg-type]


# --- rates ---------------------------------------------------------------------------------------------------


def test_rates_of_devices_add_up() -> None:
    """1,000 devices that each fail once in 50,000 h: a failure every 50 h."""
    assert Failures.of_mtbf(1000, 50_000).mtbf_s == pytest.approx(50 * 3600)
    assert Failures.of_count(1000, 2, 100).mtbf_s == pytest.approx(50 * 3600)
    assert Failures(1000).mtbf_s == math.inf
    assert Failures.of_mtbf(7, math.inf).per_second == 0


def test_bytes_become_seconds() -> None:
    assert Checkpoint.blocking(6e12, 2e12) == Checkpoint(3.0)
    assert Checkpoint.asynchronous(6e12, 2e12, 60e12) == Checkpoint(0.1, 3.0)


# --- closed forms --------------------------------------------------------------------------------------------


def test_without_failures_only_saving_costs() -> None:
    run = reliability(blocking=20, mtbf=math.inf, load_s=500)
    assert goodput(run, 80) == 0.8
    assert shares(run, 80).saving == 0.2
    assert lost_work_s(run, 80) == 50


def test_without_any_cost_every_second_counts_and_the_best_interval_is_the_shortest() -> None:
    run = reliability(blocking=0)
    assert goodput(run, 1e-3) == pytest.approx(1, abs=1e-6)
    assert best_interval(run, 2.5, 1e6) == 2.5


def test_goodput_is_dalys_complete_model() -> None:
    """Wall time a segment: M exp(R/M) (exp((t + C)/M) - 1), by hand at t = M, C = M, R = M: M e (e^2 - 1)."""
    run = reliability(blocking=MTBF, load_s=MTBF)
    assert goodput(run, MTBF) == pytest.approx(1 / (math.e * (math.e**2 - 1)))


def test_a_checkpoint_that_is_not_yet_written_is_worth_nothing() -> None:
    """Each kept interval needs W more seconds without a failure: goodput falls by exp(-W/M)."""
    waits, writes = reliability(5), reliability(5, writing=700)
    assert goodput(writes, 1000) / goodput(waits, 1000) == pytest.approx(math.exp(-700 / MTBF))
    intervals_kept = 1 / math.expm1(1005 / MTBF)  # between two failures, were all kept at once
    more = 1005 * intervals_kept * (1 - math.exp(-700 / MTBF))
    assert lost_work_s(writes, 1000) - lost_work_s(waits, 1000) == pytest.approx(more)


def test_half_an_interval_is_lost_where_failures_are_rare() -> None:
    assert lost_work_s(reliability(40, mtbf=1e9), 960) == pytest.approx(500, rel=1e-5)


def test_shares_sum_to_one_and_waiting_is_erlangs() -> None:
    """Load 1 (a failure an hour, repairs of an hour): no spare 1/2, one 1/5, two 1/16 (Erlang B, by hand)."""
    for spares, expected in ((0, 1 / 2), (1, 1 / 5), (2, 1 / 16)):
        run = reliability(mtbf=3600.0, load_s=100, repair_s=3600.0, spares=spares)
        assert waiting_share(run) == pytest.approx(expected)
        found = shares(run, 600)
        assert sum(to_mapping(found).values()) == pytest.approx(1)
        assert found.waiting == pytest.approx(expected)
    half = reliability(mtbf=1800.0, repair_s=3600.0, spares=1, replaced=0.5)
    assert waiting_share(half) == pytest.approx(1 / 5)


def test_the_longest_restart_is_where_goodput_is_the_goal() -> None:
    run = reliability(30, load_s=123)
    longest = longest_restart_s(run, 800, 0.9)
    assert longest is not None
    assert goodput(reliability(30, load_s=longest), 800) == pytest.approx(0.9)
    assert longest_restart_s(run, 800, 0.99) is None
    assert longest_restart_s(reliability(1, mtbf=math.inf), 800, 0.9) == math.inf


def test_an_interval_far_beyond_the_failures_gives_nothing_and_no_overflow() -> None:
    assert goodput(reliability(), 1e9) == 0
    assert shares(reliability(), 1e9).lost == pytest.approx(1)


# --- the best interval ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [0.3, 30.0, 3000.0, 30_000.0])
def test_no_interval_is_better_than_the_best(cost: float) -> None:
    run = reliability(cost, load_s=60)
    best = best_interval(run, 1e-3, 1e9)
    assert goodput(run, best) >= max(goodput(run, best * change) for change in (0.5, 0.9, 0.99, 1.01, 1.1, 2))
    assert goodput(run, best) == pytest.approx((1 - best / MTBF) * math.exp(-60 / MTBF))  # from the root's equation
    slope = goodput(run, best * 1.0001) - goodput(run, best * 0.9999)
    assert abs(slope) < 1e-7 * goodput(run, best)


def test_the_best_interval_stays_within_its_bounds() -> None:
    run = reliability(30, writing=2000)
    assert best_interval(run, 1, 1e6) == 1970  # the next must not begin before the last is written
    assert best_interval(reliability(30), 1, 300) == 300
    assert best_interval(reliability(30), 900, 1e6) == 900
    assert best_interval(reliability(30, mtbf=math.inf), 1, 5e5) == 5e5


@pytest.mark.parametrize(("cost", "young_within", "daly_within"), [(1.0, 0.005, 1e-6), (10.0, 0.016, 1e-5)])
def test_young_and_daly_agree_with_ours_where_saving_is_short(
    cost: float, young_within: float, daly_within: float
) -> None:
    """C/M = 0.01 % and 0.1 %. Daly's series is Young's less C, plus C/3: Young's is 2C/3 too long, 0.47 sqrt(C/M)."""
    best = best_interval(reliability(cost), 1e-3, 1e9)
    assert young_interval(cost, MTBF) == pytest.approx(best, rel=young_within)
    assert young_interval(cost, MTBF) - best == pytest.approx(2 * cost / 3, rel=0.02)
    assert daly_interval(cost, MTBF) == pytest.approx(best, rel=daly_within)


@pytest.mark.parametrize("part", [0.05, 0.2, 0.5, 1.0, 1.9, 3.0])
def test_daly_is_nearer_than_young_where_saving_is_long(part: float) -> None:
    """Up to C = 2M within 6 %, and goodput within 0.2 % of the best; Young's is off by 11 % at C = 0.05 M."""
    run = reliability(part * MTBF)
    best = best_interval(run, 1e-3, 1e9)
    young, daly = young_interval(part * MTBF, MTBF), daly_interval(part * MTBF, MTBF)
    assert abs(daly / best - 1) < 0.06
    assert abs(young / best - 1) > max(0.11, 10 * abs(daly / best - 1))
    assert goodput(run, daly) > 0.998 * goodput(run, best)


def test_formulas_by_hand() -> None:
    assert young_interval(50, 100) == 100
    assert daly_interval(50, 100) == pytest.approx(100 * (1 + 0.5 / 3 + 0.25 / 9) - 50)
    assert daly_interval(200, 100) == 100  # from C = 2M on
    assert (young_interval(0, math.inf), daly_interval(0, math.inf), daly_interval(1, math.inf)) == (0, 0, math.inf)


positive = st.floats(0.1, 1e4)


@given(positive, positive, st.floats(0, 1e4), st.floats(1e3, 1e7), st.floats(1, 10))
def test_nothing_gets_better_where_something_gets_worse(
    interval: float, blocking: float, restart: float, mtbf: float, worse: float
) -> None:
    def of(**changes: float) -> float:
        values = {"blocking": blocking, "mtbf": mtbf, "load_s": restart, **changes}
        return goodput(reliability(**values), interval)  # type: ignore[arg-type]

    usual = of()
    for changes in ({"mtbf": mtbf / worse}, {"blocking": blocking * worse}, {"load_s": restart * worse}):
        assert of(**changes) <= usual * (1 + 1e-12)
    assert of(repair_s=100 * worse) <= of(repair_s=100) <= usual
    assert of(repair_s=100 * worse) <= of(repair_s=100 * worse, spares=1)


# --- lived ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "run",
    [
        reliability(100, load_s=500),
        reliability(20, writing=700, load_s=500),
        reliability(100, load_s=500, repair_s=20_000, spares=2),
        reliability(100, load_s=5000, repair_s=9000, replaced=0.4),
    ],
    ids=["blocking", "asynchronous", "spares", "restarts fail"],
)
def test_lived_runs_have_the_mean_of_the_closed_form(run: Reliability) -> None:
    """Wall time over work, whose mean is one over goodput; the ends are a percent of a thousandth here."""
    found = lives(run, 1000, 400_000, 60)
    spread = Spread.of(life.wall_s / life.work_s for life in found)
    assert spread.standard_error < 0.02 * spread.mean
    assert spread.mean == pytest.approx(1 / goodput(run, 1000), abs=3.3 * spread.standard_error)
    for life in found:
        saved = 400 * run.checkpoint.blocking_s + run.checkpoint.writing_s
        assert life.wall_s == pytest.approx(
            life.work_s + saved + life.lost_s + life.restarting_s + life.waiting_s, rel=1e-9
        )


def test_a_seed_is_a_run() -> None:
    run = reliability(load_s=500)
    first, again, others = (lives(run, 800, 80_000, 3, seed) for seed in (5, 5, 6))
    assert first == again
    assert first[1:] == others[:2]
    assert first[0] != first[1]


def test_a_run_without_failures_is_its_work_and_its_checkpoints() -> None:
    """2,500 s in intervals of 1,000: three checkpoints, the last one after 500 s."""
    (life,) = lives(reliability(10, writing=7, mtbf=math.inf), 1000, 2500, 1)
    assert (life.wall_s, life.failures, life.lost_s) == (2537, 0, 0)


def test_a_spread_by_hand() -> None:
    """0, 1, ..., 20: mean 10, every twentieth is a place; the deviation is sqrt(38.5)."""
    spread = Spread.of(range(20, -1, -1))
    assert (spread.mean, spread.p5, spread.p95, spread.seeds) == (10, 1, 19, 21)
    assert spread.standard_error == pytest.approx(math.sqrt(38.5 / 21))


# --- nouns ---------------------------------------------------------------------------------------------------


def test_all_of_it_survives_json() -> None:
    run = reliability(30, 100, detect_s=60, repair_s=7200, spares=2, replaced=0.8)
    text = json.dumps(to_mapping(run), allow_nan=False)
    assert from_mapping(Reliability, json.loads(text), "run") == run


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (Failures, {"devices": 0}, "failures.devices: must be at least 1, got 0"),
        (Failures, {"per_device_hour": -1e-5}, "failures.per_device_hour: must be finite and not negative, got -1e-05"),
        (Failures, {"per_device_hour": math.inf}, "failures.per_device_hour: must be finite"),
        (Checkpoint, {"blocking_s": -1}, "checkpoint.blocking_s: must be finite and not negative, got -1"),
        (Checkpoint, {"writing_s": math.nan}, "checkpoint.writing_s: must be finite and not negative, got nan"),
        (Recovery, {"load_s": -3}, "recovery.load_s: must be finite and not negative, got -3"),
        (Recovery, {"spares": -1}, "recovery.spares: must not be negative, got -1"),
        (Recovery, {"spares": 2}, "recovery.spares: 2 has no effect without repair_s"),
        (Recovery, {"replaced": 0.5}, "recovery.replaced: 0.5 has no effect without repair_s"),
        (Recovery, {"repair_s": 5, "replaced": 1.2}, "recovery.replaced: a share between 0 and 1, got 1.2"),
        (
            Reliability,
            {"failures": Failures(4), "recovery": Recovery(repair_s=1, spares=5)},
            "recovery.spares: 5 are more than the job's 4 devices",
        ),
    ],
)
def test_what_cannot_be_is_refused(kind: type, values: dict[str, object], said: str) -> None:
    assert said in refused(kind, **values)


def test_intervals_and_runs_that_cannot_be_are_refused() -> None:
    run = reliability(30, writing=500)
    for interval, said in ((0, "positive and finite"), (math.inf, "positive and finite"), (400, "at least 470 s")):
        with pytest.raises(SpecError, match=said):
            goodput(run, interval)
    with pytest.raises(SpecError, match="interval: 600 s are longer than the run's 500 s of work"):
        lives(run, 600, 500, 1)
    with pytest.raises(SpecError, match="seeds: must be at least 1, got 0"):
        lives(run, 600, 5000, 0)
    with pytest.raises(SpecError, match=r"too many to live through .*; fewer seeds"):
        lives(run, 600, 1e4 * MOST_FAILURES, 1)
    with pytest.raises(SpecError, match="of 5000 s none is ever kept"):
        lives(reliability(mtbf=1), 5000, 5000, 1)
    with pytest.raises(SpecError, match="goodput: a share between 0 and 1, got 90"):
        longest_restart_s(run, 600, 90)
    with pytest.raises(SpecError, match="interval: nothing from 5 to 4 s"):
        best_interval(run, 5, 4)
    with pytest.raises(SpecError, match=r"writing_s: 500 s are longer than the run of 100 s"):
        best_interval(run, 1, 100)
    with pytest.raises(SpecError, match=r"mtbf_hours: must be positive, got 0"):
        Failures.of_mtbf(1, 0)
    with pytest.raises(SpecError, match=r"checkpoint.bytes_per_second: must be positive and finite, got 0"):
        Checkpoint.blocking(1, 0)
    with pytest.raises(SpecError, match=r"failures.mtbf_s: must be positive, got 0"):
        young_interval(1, 0)
