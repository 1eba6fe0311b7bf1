"""Case -> estimate row: which ranks it covers, what they are credited with, and why a step has no time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from reports.predict import Predictor
from suite.case import Case, case_from
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


def time_of(of: Case) -> TimeEstimate:
    return Predictor().time(of)


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


def test_what_a_rank_is_credited_with_derived_by_hand() -> None:
    """6 FLOPs a weight and token; scores and their product with the values 12 T s h a layer, half of it causal."""
    attention = 12 * T * 128 * H * L
    time = time_of(case())
    assert time.step_seconds is not None
    assert time.tflops_per_gpu is not None
    credited = 6 * T * MATRICES + attention / 2
    assert time.tflops_per_gpu * time.step_seconds * 1e12 == pytest.approx(credited)
    assert time.mfu == pytest.approx(time.tflops_per_gpu / 66.9)  # fp32 on an H100, by its datasheet
    assert time.mfu_full_attention is not None
    assert time.mfu is not None
    assert time.mfu_full_attention / time.mfu == pytest.approx((6 * T * MATRICES + attention) / credited)


def test_recomputation_takes_time_and_never_counts_for_mfu() -> None:
    """Full recomputation is the blocks' forward pass again, a third of their FLOPs."""
    plain, again = time_of(case()), time_of(case(layout={"recompute": "full"}))
    assert plain.step_seconds is not None
    assert again.step_seconds is not None
    assert again.step_seconds > plain.step_seconds
    assert plain.tflops_per_gpu is not None
    assert again.tflops_per_gpu is not None
    assert again.tflops_per_gpu * again.step_seconds == pytest.approx(plain.tflops_per_gpu * plain.step_seconds)
    assert plain.mfu == plain.hfu
    assert again.mfu is not None
    assert again.hfu is not None
    blocks = 6 * T * (MATRICES - V * H) + 12 * T * 128 * H * L / 2
    assert again.hfu / again.mfu == pytest.approx(1 + blocks / 3 / (blocks + 6 * T * V * H))


def test_a_cpu_that_was_not_measured_has_no_time() -> None:
    time = time_of(case("cpu"))
    assert time.step_seconds is None
    assert "measure it with `calibrate`" in time.basis


def test_links_that_are_not_known_leave_a_step_without_a_time() -> None:
    """No network between machines with consumer cards is known."""

    def time(nodes: int) -> TimeEstimate:
        cluster = {"device": "rtx-4090", "nodes": nodes, "per_node": 2}
        return time_of(case_from({"model": "llama-1m", "layout": {"dp": 2 * nodes}, "cluster": cluster}))

    assert time(1).step_seconds is not None
    assert time(2).step_seconds is None
    assert "links" in time(2).basis


def test_a_device_that_is_not_known_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^cluster\.device: 'h1000' is not known; did you mean h100"):
        Predictor()(case("h1000"))


@pytest.mark.parametrize("layout", [{"tp": 4}, {"cp": 2}, {"pp": 2}, {"fsdp": 2}])
def test_ranks_share_the_models_flops(layout: dict[str, int]) -> None:
    """One sequence for each data rank: what a rank is credited with is its part of one process's figure."""
    work = {"seq_len": 256, "precision": "fp32", "micro_batches": 2}

    def figures(settings: dict[str, int]) -> tuple[float, float]:
        of = case_from({"model": "gpt-1m", "layout": settings, "workload": work, "cluster": {"device": "h100-sxm"}})
        time = Predictor().time(of)
        assert time.tflops_per_gpu is not None
        assert time.step_seconds is not None
        return time.tflops_per_gpu * time.step_seconds, time.parts_seconds["compute"]

    (alone, alone_seconds), (shared, seconds) = figures({}), figures(layout)
    ranks = math.prod(layout.values()) if "fsdp" not in layout else 1
    assert shared == pytest.approx(alone / ranks)
    assert alone_seconds / ranks <= seconds  # small kernels fill a device less, and sharding copies
