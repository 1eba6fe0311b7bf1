"""Matrix rates: lookup by hand-made points, the JSON form, and one short measurement of this machine."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest

from suite.hardware import MatmulDtype, matrix_rate
from suite.hardware.matrix_rate import (
    MatrixRate,
    MatrixRateError,
    MatrixRates,
    equivalent_side,
    measure_matrix_rates,
)
from suite.parse import SpecError


def point(side: int, flops_per_second: float, dtype: str = "fp32", ranks: int = 1, iqr: float = 0.0) -> MatrixRate:
    return MatrixRate(MatmulDtype(dtype), ranks, 2, side, side, side, flops_per_second, iqr, 8)


def rates(*points: MatrixRate, other_cores: float = 0.0) -> MatrixRates:
    return MatrixRates("a CPU", 2, "2.13", points, other_cores)


LADDER = rates(point(100, 10e9), point(400, 30e9), point(1600, 30e9), point(100, 99e9, ranks=2))


@pytest.mark.unit
def test_the_equivalent_side_of_a_cube_is_its_side() -> None:
    assert equivalent_side(512, 512, 512) == pytest.approx(512)
    # 3 * 2048 * 256 * 256 / (2 * 2048 * 256 + 256 * 256) = 3 * 2048 * 256 / (2 * 2048 + 256)
    assert equivalent_side(2048, 256, 256) == pytest.approx(3 * 2048 * 256 / 4352)
    assert equivalent_side(2048, 1024, 256) == equivalent_side(256, 2048, 1024)


@pytest.mark.unit
def test_between_two_sizes_the_rate_is_interpolated_over_the_log() -> None:
    found = LADDER.rate("fp32", 1, 200, 200, 200)  # 200 is halfway from 100 to 400, in logs
    assert found.flops_per_second == pytest.approx(20e9)
    assert "interpolated over log size between 100x100x100 and 400x400x400" in found.basis
    assert "fp32" in found.basis
    assert "1 rank at once with 2 threads each" in found.basis


@pytest.mark.unit
def test_a_measured_shape_gives_its_own_rate() -> None:
    odd = MatrixRate(MatmulDtype.FP32, 1, 2, 2048, 256, 256, 5e9, 0.0, 8)
    found = rates(point(100, 10e9), odd, point(400, 30e9)).rate(MatmulDtype.FP32, 1, 2048, 256, 256)
    assert found.flops_per_second == 5e9
    assert "this very shape, 2048x256x256" in found.basis


@pytest.mark.unit
def test_beyond_the_measured_sizes_the_last_rate_holds_and_the_basis_says_so() -> None:
    small, large = LADDER.rate("fp32", 1, 8, 8, 8), LADDER.rate("fp32", 1, 4096, 4096, 4096)
    assert small.flops_per_second == 10e9
    assert "smallest size measured, 100x100x100" in small.basis
    assert large.flops_per_second == 30e9
    assert "largest size measured, 1600x1600x1600" in large.basis


@pytest.mark.unit
def test_ranks_are_not_mixed() -> None:
    assert LADDER.rate("fp32", 2, 100, 100, 100).flops_per_second == 99e9


@pytest.mark.unit
def test_what_was_not_measured_is_refused() -> None:
    with pytest.raises(SpecError, match=r"bf16 with 1 ranks was not measured; measured: fp32 with 1, fp32 with 2"):
        LADDER.rate("bf16", 1, 64, 64, 64)
    with pytest.raises(SpecError, match="fp32 with 3 ranks was not measured"):
        LADDER.rate("fp32", 3, 64, 64, 64)
    with pytest.raises(SpecError, match="at least 1, got 0, 64, 64"):
        LADDER.rate("fp32", 1, 0, 64, 64)


@pytest.mark.unit
def test_noise_and_a_busy_machine_are_said() -> None:
    noisy = rates(point(100, 10e9, iqr=2e9), other_cores=0.84).rate("fp32", 1, 100, 100, 100)
    assert "100x100x100 (noisy)" in noisy.basis
    assert "other processes kept 0.8 of 2 cores busy" in noisy.basis
    quiet = rates(point(100, 10e9, iqr=0.5e9)).rate("fp32", 1, 100, 100, 100)
    assert "noisy" not in quiet.basis
    assert "other processes" not in quiet.basis


@pytest.mark.unit
def test_json_and_back() -> None:
    text = json.dumps(LADDER.to_mapping())
    assert MatrixRates.from_mapping(json.loads(text)) == LADDER


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, r"matrix_rates.schema: 2 is foreign"),
        ({"speed": 1}, r"matrix_rates.speed: unknown key"),
        ({"cores": "two"}, r"matrix_rates.cores: expected a whole number, got 'two'"),
    ],
)
def test_foreign_json_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        MatrixRates.from_mapping(LADDER.to_mapping() | change)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank_counts": ()}, "rank_counts: at least one"),
        ({"rank_counts": (0,)}, r"each at least 1, got \[0\]"),
        ({"seconds": 0}, "seconds: must be above 0 and below 600, got 0"),
        ({"shapes": ((0, 1, 1),)}, "shapes: at least one, sizes at least 1"),
        ({"dtypes": (MatmulDtype.BF16, MatmulDtype.FP8)}, "dtypes: at least one of fp32, bf16, fp16, got bf16, fp8"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        measure_matrix_rates(**arguments)


@pytest.mark.unit
def test_a_reading_becomes_flops_per_second() -> None:
    """10 x 10 x 10: three products of 2 x 1000 FLOPs; at 6 us the rate is 1 GFLOP/s."""
    row = {"dtype": "fp32", "ranks": 2, "threads": 1, "m": 10, "n": 10, "k": 10, "seconds": [6e-6, 3e-6, 6e-6, 12e-6]}
    found = matrix_rate._summary(row)
    assert found.flops_per_second == pytest.approx(1e9)
    assert found.readings == 4


@pytest.mark.unit
def test_a_process_that_fails_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_rate, "WORKER", "suite.hardware.no_such_worker")
    with pytest.raises(MatrixRateError, match=r"ended with status 1: .*no_such_worker") as failure:
        measure_matrix_rates((1,), 0.1)
    assert "\n" not in str(failure.value)


@pytest.mark.unit
def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_rate, "START_ALLOWANCE_S", 0.1)
    monkeypatch.setattr(matrix_rate, "SLOWNESS_ALLOWANCE", 0.1)
    start = time.monotonic()
    with pytest.raises(MatrixRateError, match="no answer within 0 s"):
        measure_matrix_rates((1,), 1.0)
    assert time.monotonic() - start < 8


@pytest.mark.e2e
def test_a_rank_that_fails_ends_the_measurement_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_rate, "DTYPES", tuple(MatmulDtype))
    start = time.monotonic()
    with pytest.raises(MatrixRateError, match=r"one of 2 ranks failed: KeyError: 'fp8'$"):
        measure_matrix_rates((2,), 0.1, shapes=((8, 8, 8),), dtypes=(MatmulDtype.FP8,))
    assert time.monotonic() - start < 30  # the other rank is not waited for


@pytest.mark.e2e
def test_this_machine_is_measured_without_importing_torch_here() -> None:
    had_torch = "torch" in sys.modules
    found = measure_matrix_rates((1, 2), 0.4, shapes=((64, 64, 64), (256, 256, 256)))
    assert ("torch" in sys.modules) == had_torch
    assert len(found.rates) == 2 * 2 * 2
    assert {(item.dtype.value, item.ranks) for item in found.rates} == {
        ("fp32", 1),
        ("fp32", 2),
        ("bf16", 1),
        ("bf16", 2),
    }
    for item in found.rates:
        assert item.readings == 8 * item.ranks
        assert item.threads == max(1, found.cores // item.ranks)
        assert 1e6 < item.flops_per_second < 1e14
    assert found.rate("bf16", 2, 100, 100, 100).flops_per_second > 0
