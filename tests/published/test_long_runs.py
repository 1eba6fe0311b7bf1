"""Published long runs: what their interruptions allow, and what of that which they leave open would contradict them."""

from __future__ import annotations

import math

import pytest

from parallelism.simulator.failures import HOUR_S, Failures
from parallelism.simulator.goodput import goodput, lost_work_s
from parallelism.simulator.long_run import Spread, lives
from reports.published.long_runs import (
    BLOOM,
    LLAMA3_405B,
    LLAMA3_LARGEST_SHARD_BYTES,
    LLAMA3_STORAGE_BYTES_PER_SECOND,
    MEGASCALE,
    MEGASCALE_CATCH_UP_S,
    MEGASCALE_DETECT_S,
    OPT_175B,
    RUNS,
    effective_time,
    longest_restart,
    reliability,
)

pytestmark = pytest.mark.published

MINUTE = 60.0
LLAMA3_MTBF_S = 54 * 24 * HOUR_S / 419


def test_llama_3s_rate_is_a_failure_of_a_device_in_50_thousand_hours() -> None:
    """419 in 16,384 x 54 days: one in 3.1 h, and with the 47 planned one in 2.8 h."""
    failures = LLAMA3_405B.failures
    assert failures.mtbf_s == pytest.approx(LLAMA3_MTBF_S)
    assert 1 / failures.per_device_hour == pytest.approx(16384 * 54 * 24 / 419)
    assert LLAMA3_405B.interruptions.mtbf_s / HOUR_S == pytest.approx(54 * 24 / 466)


@pytest.mark.parametrize("checkpoint_s", [405e9 * 14 / LLAMA3_STORAGE_BYTES_PER_SECOND, 10.0])
@pytest.mark.parametrize("restart_s", [1 * MINUTE, 5 * MINUTE, 10 * MINUTE])
def test_llama_3s_effective_time_is_above_90_percent_over_the_plausible_range(
    checkpoint_s: float, restart_s: float
) -> None:
    """A state of 14 bytes a parameter at the storage's sustained 2 TB/s is 2.8 s; restarts of up to 10 min. Even with
    the planned interruptions counted as failures."""
    assert effective_time(LLAMA3_405B.failures, checkpoint_s, restart_s) > 0.90
    assert effective_time(LLAMA3_405B.interruptions, checkpoint_s, restart_s) > 0.90


def test_what_would_contradict_llama_3s_effective_time() -> None:
    """Free checkpoints: a restart beyond M ln(1/0.9) = 19.5 min. Instant restarts: the best interval t gives goodput
    1 - t/M, so t = 0.1 M and saving beyond M (ln(1/0.9) - 0.1) = 59.7 s. And the largest shards, 4 GB of each device at
    2 TB/s (33 s), leave 5.1 min for a restart."""
    free = longest_restart(LLAMA3_405B.failures, 0.0, 0.9)
    assert free == pytest.approx(LLAMA3_MTBF_S * math.log(1 / 0.9), rel=1e-3)
    saving = LLAMA3_MTBF_S * (math.log(1 / 0.9) - 0.1)
    assert saving == pytest.approx(59.7, abs=0.05)
    assert longest_restart(LLAMA3_405B.failures, 0.999 * saving, 0.9) is not None
    assert longest_restart(LLAMA3_405B.failures, 1.001 * saving, 0.9) is None
    largest = 16384 * LLAMA3_LARGEST_SHARD_BYTES / LLAMA3_STORAGE_BYTES_PER_SECOND
    left = longest_restart(LLAMA3_405B.failures, largest, 0.9)
    assert left is not None
    assert 5 * MINUTE < left < 5.5 * MINUTE


def test_54_lived_days_have_llama_3s_interruptions() -> None:
    """Over 20 seeds, checkpoints of 10 s and restarts of 5 min: 419 failures on average, every run above 90 %."""
    run, interval = reliability(LLAMA3_405B.failures, 10, 5 * MINUTE), 465.0
    work = 54 * 24 * HOUR_S * goodput(run, interval)
    found = lives(run, interval, work, 20)
    failures = Spread.of(life.failures for life in found)
    assert failures.mean == pytest.approx(419, abs=3.3 * math.sqrt(419 / 20))
    assert min(life.goodput for life in found) > 0.90


def test_megascales_recovery_fits_its_effective_time() -> None:
    """100 crashes of at most 10 min and 15 min each are 41.7 h: 8.3 % of three weeks, but 12.4 % of two. By the model:
    saving every 20 min in 10 s loses 10 min of the 15 that it takes to catch up."""
    each = MEGASCALE_DETECT_S + MEGASCALE_CATCH_UP_S
    run = reliability(MEGASCALE.failures, 10, each - 600)
    assert lost_work_s(run, 1200) == pytest.approx(600, rel=0.01)
    found = goodput(run, 1200)
    assert found == pytest.approx(1 - 100 * each / (21 * 86400) - 10 / 1210, abs=0.006)
    assert found > (MEGASCALE.effective or 1)
    two_weeks = Failures.of_count(MEGASCALE.devices, 100, 14 * 24)
    assert goodput(reliability(two_weeks, 10, each - 600), 1200) < 0.88


def test_bloom_loses_an_hour_and_a_half_at_a_crash() -> None:
    """As its authors say they would on average: 100 iterations of 105 s, checkpoints of 40 s, 1 to 2 crashes a week."""
    assert BLOOM.interval_s is not None
    run = reliability(BLOOM.failures, BLOOM.checkpoint_s or 0)
    assert round(lost_work_s(run, BLOOM.interval_s) / HOUR_S, 1) == 1.5


def test_opts_two_months_need_hours_a_restart() -> None:
    """33 days of work in two months, 105 restarts: 13.7 h apart, of which 6 are lost on average. Its log says that
    replacing a machine could take hours."""
    assert OPT_175B.effective == pytest.approx(0.568, abs=0.001)
    longest = longest_restart(OPT_175B.failures, 60, OPT_175B.effective or 1)
    assert longest is not None
    assert 5 < longest / HOUR_S < 8


def test_every_run_says_where_it_is_from_and_what_was_assumed() -> None:
    assert all(run.source and run.assumed for run in RUNS)
