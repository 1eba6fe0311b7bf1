"""What shipped devices achieve: tiles and waves by hand, published rates, and where none is known."""

from __future__ import annotations

import pytest

from suite.hardware import DEVICES, MatmulDtype, device
from suite.hardware.achieved import ACHIEVED, speeds_of
from suite.hardware.attention_rates import AttentionRates
from suite.hardware.tiles import tile_curve, tile_share
from suite.parse import SpecError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "rows, columns, share",
    [
        (12 * 128, 11 * 256, 1.0),  # 132 tiles of 128 x 256: one full wave
        (
            12 * 128,
            11 * 256 + 1,
            12 * 128 * 2817 / (3 * 132 * 128**2),
        ),  # a column more: 12 x 23 of 128 x 128 in three waves
        (64, 64, 0.5 / 132),  # one small tile, on one multiprocessor, at half the rate
        (1024, 1024, 2 / 3 * 128 / 132),  # 128 tiles of 64 x 128 beat 64 of 128 x 128
    ],
)
def test_tiles_and_waves_by_hand(rows: int, columns: int, share: float) -> None:
    assert tile_share(rows, columns, 132) == pytest.approx(share, rel=1e-12)


def test_a_larger_product_runs_nearer_to_the_best_shape() -> None:
    values = tile_curve(1.0, 132, "").values
    assert list(values) == sorted(values)
    assert values[0] < 0.02
    assert 0.98 < values[-1] <= 1


def test_attention_forward_and_backward_together() -> None:
    """One part of work at 80, two and a half at 80/100 of 50: 3.5 / (1/80 + 2.5/40) = 46.67."""
    rates = AttentionRates((100.0,), (80.0,), (50.0,)).both_causal()
    assert rates == (pytest.approx(3.5 / 0.075 * 1e12, rel=1e-12),)


def test_attention_rates_lie_below_their_papers_best() -> None:
    """FlashAttention-2 reaches at most 73 % of an A100's peak forward, 335 TFLOP/s causal on an H100."""
    best = {"a100-80gb-sxm": 0.73 * 312e12, "h100-sxm": 335e12}
    for name, bound in best.items():
        curve = speeds_of(device(name)).attention[MatmulDtype.BF16]
        assert curve.sizes == (512, 1024, 2048, 4096, 8192, 16384)
        assert 0.5 * bound < max(curve.values) < bound


def test_memory_rates_are_the_published_ones() -> None:
    """hw-0219: 4096 x 4096 fp32 read and written in 88.16 us, 0.9 us of it the launch."""
    for name, milliseconds in (("a100-80gb-sxm", 0.08816), ("h100-sxm", 0.05104)):
        memory = speeds_of(device(name)).memory
        assert memory is not None
        assert memory.at(2 * 4 * 4096**2) == pytest.approx(2 * 4 * 4096**2 / (milliseconds / 1e3 - 0.9e-6), rel=1e-9)


def test_nothing_is_faster_than_its_datasheet() -> None:
    for name in ACHIEVED:
        item, speeds = device(name), speeds_of(device(name))
        for dtype, curve in speeds.matmul.items():
            assert max(curve.values) < (item.peak(dtype).value or 0), (name, dtype)
        if speeds.memory is not None:
            assert max(speeds.memory.values) < (item.memory_bandwidth_bytes_per_second.value or 0), name


def test_what_is_not_known_is_left_out() -> None:
    assert MatmulDtype.BF16 not in speeds_of(device("v100-32gb-sxm")).matmul  # no such units
    assert not speeds_of(device("v100-32gb-sxm")).attention  # FlashAttention-2 needs Ampere
    assert set(speeds_of(device("h100-96gb-500w")).matmul) == {MatmulDtype.BF16}  # one peak is in print
    assert speeds_of(device("gb200")).memory is None  # two bandwidths are in print


def test_a_device_without_rows_says_whose_stand_in() -> None:
    with_rows = {
        "a100-80gb-sxm",
        "a100-40gb-sxm",
        "a100-80gb-pcie",
        "a100-40gb-pcie",
        "h100-sxm",
        "b200",
        "b300",
        "gb200",
    }
    for name in set(ACHIEVED) - with_rows - {"mi300x"}:
        for dtype, curve in speeds_of(device(name)).matmul.items():
            if device(name).achieved(dtype).value is None:
                assert "stands in" in curve.source, (name, dtype)
    for name in with_rows:
        assert "hw_micro.csv hw-" in speeds_of(device(name)).matmul[MatmulDtype.BF16].source


def test_devices_without_figures_are_refused() -> None:
    assert set(DEVICES) - set(ACHIEVED) == {"rtx-4070-ti-super", "rtx-a6000"}
    for name, words in (("cpu", "`calibrate` measures them"), ("rtx-4070-ti-super", "no achieved rates are known")):
        with pytest.raises(SpecError, match=words):
            speeds_of(device(name))
