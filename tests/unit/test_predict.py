"""Case -> estimate row: which ranks it covers, which rate its time is taken at, and that it says so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from memory.estimate import MemoryModel
from reports.predict import Predictor, product_shapes
from suite.case import Case, case_from
from suite.hardware.matrix_rate import MatrixRates
from suite.parse import SpecError
from suite.record import TimeEstimate
from suite.store import EstimateRow, decode, encode

pytestmark = pytest.mark.unit

#: tokens, layers, hidden, key-value width, MLP width and vocabulary of llama-1m on two sequences of 128
T, L, H, K, F, V = 256, 4, 128, 64, 256, 1024
MATRICES = L * (2 * H * H + 2 * H * K + 3 * H * F) + V * H


def case(device: str = "h100-sxm", layout: dict[str, Any] | None = None, **workload: Any) -> Case:
    mapping = {"seq_len": 128, "micro_batch": 2, "precision": "fp32", **workload}
    return case_from({"model": "llama-1m", "layout": layout or {}, "workload": mapping, "cluster": {"device": device}})


def time_of(of: Case, rates: MatrixRates | None = None) -> TimeEstimate:
    return Predictor(rates).time(of, MemoryModel(of))


def seconds_of(of: Case, rates: MatrixRates | None = None) -> float:
    seconds = time_of(of, rates).step_seconds
    assert seconds is not None
    return seconds


def measured(rate: float, ranks: int = 1, dtype: str = "fp32") -> MatrixRates:
    """Rates as a measurement leaves them: every product of the case at `rate` FLOP/s."""
    rows = [
        {
            "dtype": dtype,
            "ranks": ranks,
            "threads": 1,
            **dict(zip("mnk", shape, strict=True)),
            "flops_per_second": rate,
            "iqr_flops_per_second": 0.0,
            "readings": 8,
        }
        for shape in product_shapes([case("cpu")])
    ]
    return MatrixRates.from_mapping({"cpu": "made up", "cores": 2, "torch": "2.13.0", "rates": rows})


def test_the_row_of_a_case_is_what_the_store_keeps() -> None:
    row = Predictor()(case("cpu", {"fsdp": 3}))
    assert [memory.rank for memory in row.memory] == [0, 1, 2]
    assert row.case_id == case_from(row.case).case_id
    assert row.reason == ""
    assert decode(encode(row).rstrip(), Path("records.jsonl"), 1) == row


def test_a_large_layout_writes_out_a_rank_of_every_stage() -> None:
    """64 ranks of which each 16 hold the same stage; the ranks of a small layout are all written out."""
    row: EstimateRow = Predictor()(case("h100-sxm", {"pp": 4, "fsdp": 16}, micro_batches=4))
    assert [memory.rank for memory in row.memory] == [0, 16, 32, 48]
    assert json.loads(encode(row))["kind"] == "estimate"


def test_time_derived_by_hand() -> None:
    """6 FLOPs a weight and token; scores and their product with the values 12 T s h a layer, half of it causal."""
    attention = 12 * T * 128 * H * L
    of = case(attention="flash")
    executed = 6 * T * MATRICES + attention / 2  # flash skips the masked half
    time = time_of(of)
    assert time.step_seconds is not None
    assert time.tflops_per_gpu is not None
    rate = executed / time.step_seconds
    assert time.tflops_per_gpu == pytest.approx(rate / 1e12)
    assert seconds_of(case(attention="eager")) == pytest.approx((6 * T * MATRICES + attention) / rate)
    assert time.mfu is not None
    assert time.mfu_full_attention is not None
    assert time.mfu_full_attention / time.mfu == pytest.approx((6 * T * MATRICES + attention) / executed)


def test_micro_batches_and_sequences_take_their_time() -> None:
    one = seconds_of(case())
    assert seconds_of(case(micro_batches=5)) == pytest.approx(5 * one)
    assert seconds_of(case(micro_batch=6)) == pytest.approx(3 * one)
    assert time_of(case(micro_batches=5)).mfu == pytest.approx(time_of(case()).mfu)  # work and time alike


@pytest.mark.parametrize("layout", [{"dp": 4}, {"fsdp": 4}])
def test_ranks_multiply_the_tokens_and_not_the_time(layout: dict[str, Any]) -> None:
    alone, together = time_of(case()), time_of(case(layout=layout))
    assert together.step_seconds == alone.step_seconds
    assert alone.tokens_per_second is not None
    assert together.tokens_per_second == pytest.approx(4 * alone.tokens_per_second)
    assert together.tflops_per_gpu == alone.tflops_per_gpu


def test_recomputation_costs_a_third_more_and_never_counts_for_mfu() -> None:
    """Full recomputation is the blocks' forward pass again; the head is outside the blocks."""
    plain, again = time_of(case()), time_of(case(layout={"recompute": "full"}))
    assert plain.step_seconds is not None
    assert again.step_seconds is not None
    assert 1.2 < again.step_seconds / plain.step_seconds < 4 / 3
    assert plain.mfu is not None
    assert again.mfu is not None
    assert again.hfu is not None
    assert again.mfu < plain.mfu
    assert again.hfu == pytest.approx(plain.hfu)
    assert seconds_of(case(layout={"recompute": "every-2"})) < again.step_seconds


def test_a_measured_rate_is_used_for_this_machine_alone() -> None:
    rates = measured(50e9)
    local = time_of(case("cpu"), rates)
    assert local.tflops_per_gpu == pytest.approx(0.05)
    assert "measured on this machine (made up, torch 2.13.0)" in local.basis
    assert local.mfu is None  # a CPU has no datasheet peak to hold it against
    assert time_of(case("h100-sxm"), rates) == time_of(case("h100-sxm"))


@pytest.mark.parametrize(
    "of, rates",
    [
        (case("cpu"), None),
        (case("cpu"), measured(50e9, dtype="bf16")),  # another format
        (case("cpu", {"dp": 2}), measured(50e9)),  # as many ranks were not measured
    ],
)
def test_what_was_not_measured_is_not_made_up(of: Case, rates: MatrixRates | None) -> None:
    time = time_of(of, rates)
    assert time.step_seconds is None
    assert "no matrix rate is known" in time.basis


def test_each_product_runs_at_the_rate_of_its_own_shape() -> None:
    """The head at half the rate of the rest: its 6 T V H FLOPs take twice as long."""
    rates = measured(100e9).to_mapping()
    for row in rates["rates"]:
        if row["n"] == V:
            row["flops_per_second"] = 50e9
    mixed, even = seconds_of(case("cpu"), MatrixRates.from_mapping(rates)), seconds_of(case("cpu"), measured(100e9))
    assert mixed / even == pytest.approx(1 + V * H / MATRICES)


def test_the_products_of_several_cases_are_listed_once() -> None:
    shapes = product_shapes([case("cpu"), case("cpu", {"dp": 2}), case("cpu", micro_batch=4)])
    expected = {(t, n, k) for t in (T, 2 * T) for n, k in [(H, H), (K, H), (F, H), (H, F), (V, H)]}
    assert set(shapes) == expected
    assert len(shapes) == len(expected)


def test_a_device_that_is_not_known_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^cluster\.device: 'h1000' is not known; did you mean h100"):
        Predictor()(case("h1000"))


def test_fp32_and_bf16_run_at_their_own_rates() -> None:
    assert seconds_of(case(precision="bf16-mixed")) < seconds_of(case()) / 5


@pytest.mark.parametrize("layout", [{"tp": 4}, {"cp": 2}, {"pp": 2}, {"fsdp": 2}])
def test_ranks_share_the_models_flops(layout: dict[str, int]) -> None:
    """One sequence for each data rank: what a rank is credited with is its part of one process's figure."""
    work = {"seq_len": 256, "precision": "fp32", "micro_batches": 2}

    def figures(settings: dict[str, int]) -> tuple[float, float]:
        of = case_from({"model": "gpt-1m", "layout": settings, "workload": work, "cluster": {"device": "h100-sxm"}})
        time = Predictor().time(of, MemoryModel(of))
        assert time.tflops_per_gpu is not None
        assert time.step_seconds is not None
        return time.tflops_per_gpu * time.step_seconds, time.parts_seconds["compute"]

    (alone, alone_seconds), (shared, seconds) = figures({}), figures(layout)
    ranks = math.prod(layout.values()) if "fsdp" not in layout else 1
    assert shared == pytest.approx(alone / ranks)
    assert alone_seconds / ranks <= seconds * (1 + 1e-9) <= alone_seconds * (1 + 1e-9)
