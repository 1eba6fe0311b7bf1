"""Time of a step from FLOPs and a rate, against hand arithmetic."""

from __future__ import annotations

import math
from typing import Any

import pytest

from parallelism.simulator.roofline import bubble_share, estimate_time
from suite.case import Case, case_from
from suite.layout import Layout, Schedule
from suite.parse import SpecError

pytestmark = pytest.mark.unit


@pytest.fixture
def case() -> Case:
    """2 ranks x 3 micro-batches x 1 sequence x 256 tokens = 1,536 tokens a step."""
    return case_from(
        {
            "model": "gpt-1m",
            "layout": {"dp": 2},
            "workload": {"seq_len": 256, "micro_batch": 1, "micro_batches": 3},
        }
    )


def test_a_measured_rate_gives_the_time(case: Case) -> None:
    """8 TFLOP at 2 TFLOP/s take 4 s; 6 of them are the model's."""
    time = estimate_time(case, 6e12, 8e12, 8e12, 2e12, None, "measured here")
    assert time.step_seconds == 4.0
    assert time.tokens_per_second == 384.0  # all ranks: 1536 / 4
    assert time.tflops_per_gpu == pytest.approx(1.5)  # per rank, model FLOPs only: 6 / 4
    assert time.mfu is None
    assert time.hfu is None
    assert time.parts_seconds == {"compute": 4.0, "exposed_communication": 0.0, "bubble": 0.0}
    assert time.basis.startswith("measured here; ")
    assert "communication" in time.basis
    assert "not modelled" in time.basis
    assert "lower bound" not in time.basis


def test_mfu_leaves_recomputation_out_and_hfu_counts_it(case: Case) -> None:
    time = estimate_time(case, 6e12, 8e12, 8e12, 2e12, 10e12, "measured here")
    assert time.mfu == pytest.approx(0.15)  # 1.5 of 10 TFLOP/s
    assert time.hfu == pytest.approx(0.20)  # 2 of 10


def test_recomputation_makes_the_step_longer_and_never_the_mfu_higher(case: Case) -> None:
    plain = estimate_time(case, 6e12, 6e12, 6e12, 2e12, 10e12, "")
    again = estimate_time(case, 6e12, 8e12, 8e12, 2e12, 10e12, "")
    assert plain.step_seconds is not None
    assert again.step_seconds is not None
    assert again.step_seconds / plain.step_seconds == pytest.approx(8 / 6)
    assert plain.mfu is not None
    assert again.mfu is not None
    assert again.mfu < plain.mfu
    assert again.hfu == plain.hfu == pytest.approx(0.2)


def test_a_datasheet_peak_alone_gives_a_lower_bound_and_says_so(case: Case) -> None:
    time = estimate_time(case, 6e12, 8e12, 8e12, None, 4e12, "H100 datasheet")
    assert time.step_seconds == 2.0
    assert time.mfu == pytest.approx(0.75)
    assert time.hfu == pytest.approx(1.0)
    assert time.basis.startswith("H100 datasheet; ")
    assert "lower bound" in time.basis


def test_without_any_rate_nothing_is_made_up(case: Case) -> None:
    time = estimate_time(case, 6e12, 8e12, 8e12, None, None, "this machine")
    assert (time.step_seconds, time.tokens_per_second, time.tflops_per_gpu, time.mfu, time.hfu) == (None,) * 5
    assert time.parts_seconds == {}
    assert time.basis.startswith("this machine; no matrix rate is known")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0.0, 8e12, 8e12, 2e12, None), "flops_model: must be positive and finite, got 0.0"),
        ((6e12, math.inf, 8e12, 2e12, None), "flops_hardware: must be positive and finite, got inf"),
        ((6e12, 8e12, 0.0, 2e12, None), "flops_executed: must be positive and finite, got 0.0"),
        ((6e12, 8e12, 8e12, -1.0, None), "rate_flops_per_second: must be positive and finite, got -1.0"),
        ((6e12, 8e12, 8e12, 2e12, 0.0), "peak_flops_per_second: must be positive and finite, got 0.0"),
        ((8e12, 6e12, 6e12, 2e12, None), "flops_hardware: 6000000000000.0 is below flops_model"),
    ],
)
def test_senseless_numbers_are_refused(
    case: Case, numbers: tuple[float, float, float, float | None, float | None], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        estimate_time(case, *numbers, "")


@pytest.mark.parametrize(
    "settings, micro_batches, share",
    [
        ({}, 4, 0.0),
        ({"pp": 4, "schedule": Schedule.GPIPE}, 8, 3 / 8),
        ({"pp": 4}, 8, 3 / 8),
        ({"pp": 4, "schedule": Schedule.INTERLEAVED, "virtual_stages": 3}, 8, 1 / 8),
        ({"pp": 4, "schedule": Schedule.ZBV, "virtual_stages": 2}, 8, 0.0),
    ],
)
def test_the_bubble_is_that_of_the_textbook(settings: dict[str, Any], micro_batches: int, share: float) -> None:
    """Narayanan et al. (arXiv:2104.04473), section 2.2: (p - 1) / m, and a v-th of it interleaved."""
    assert bubble_share(Layout(**settings), micro_batches) == share
