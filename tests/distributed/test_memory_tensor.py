"""Formula against allocator on every rank of tensor-parallel layouts, alone and beside every other axis: every
moment, pairwise over choices."""

from __future__ import annotations

from typing import Any

import pytest

from suite.case import Case, case_from
from suite.pairwise import pairwise
from suite.record import Moment
from suite.spec import Precision
from tests.distributed.ranks import run_cases
from tests.fake.measured import Beside, measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.distributed

#: 301 rows of a vocabulary divide by neither 2 nor 4; what a rank has of an MLP's 164 features not by 3
GPT = {"layers": 2, "hidden": 90, "heads": 4, "head_dim": 18, "ffn": 364, "vocab": 301, "max_positions": 128,
       "norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True, "tied": True}  # fmt: skip
LLAMA = {"layers": 2, "hidden": 96, "heads": 8, "kv_heads": 4, "ffn": 164, "vocab": 302, "max_positions": 128}
#: few rows of keys: of a rank's, FSDP2's last shards hold none
NARROW = {"layers": 2, "hidden": 36, "heads": 8, "kv_heads": 4, "head_dim": 2, "ffn": 52, "vocab": 301,
          "max_positions": 128, "qkv_bias": True, "tied": True}  # fmt: skip
MODELS = {"gpt": GPT, "llama": LLAMA, "narrow": NARROW}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tp": 2},
    "tp2-dp2": {"tp": 2, "dp": 2},
    "tp2-fsdp2": {"tp": 2, "fsdp": 2},
}
SETTINGS: dict[str, list[Any]] = {
    "layout": list(LAYOUTS),
    "sequence_parallel": [True, False],
    "model": list(MODELS),
    "recompute": ["none", "selective", "full"],
    "precision": ["fp32", "bf16-mixed", "bf16"],
    "micro_batches": [1, 2],
    "reduction": ["step", "micro-batch"],
    "attention": ["flash", "eager"],
    "loss": ["plain", "chunked"],
    "optimizer": ["adamw", "sgd"],
    "micro_batch": [3, 1],
    "dropout": [0.0, 0.1],
}
#: beside a loss's scalars, clipping's norm of every parameter, and its parts
SCALARS = 2048


def case_of(choice: dict[str, Any]) -> Case:
    """The case of a choice of settings."""
    layout = LAYOUTS[choice["layout"]] | {
        key: choice[key] for key in ("sequence_parallel", "recompute", "reduction")
    }  # fmt: skip
    keys = ("precision", "micro_batches", "attention", "loss", "optimizer", "micro_batch")
    workload = {"seq_len": 40} | {key: choice[key] for key in keys}
    model = MODELS[choice["model"]] | {"dropout": choice["dropout"]}
    return case_from({"model": model, "layout": layout, "workload": workload})


def beside(model: dict[str, Any], layout: dict[str, Any], workload: dict[str, Any]) -> Case:
    """Two tensor-parallel ranks beside another axis or its knobs."""
    sizes = {"seq_len": 40, "micro_batch": 2}
    return case_from({"model": model, "layout": {"tp": 2} | layout, "workload": sizes | workload})


BF16, PER_OPERATOR = {"precision": "bf16-mixed"}, {"recompute": "selective-op"}
BESIDE = [
    beside(LLAMA, {"fsdp": 2, "reshard_after_forward": False, "reduce_type": "bf16"}, BF16 | {"micro_batches": 2}),
    beside(LLAMA | {"vocab": 12002}, {"dp": 2, "bucket_mib": 1}, {"seq_len": 4, "micro_batches": 2}),
    beside(GPT | {"tied": False}, {"pp": 2}, BF16 | {"micro_batches": 4}),
    beside(LLAMA, {"pp": 2, "sequence_parallel": False}, {"micro_batches": 2}),
    beside(GPT | {"dropout": 0.1}, {"cp": 2}, BF16),
    beside(LLAMA, {"cp": 2, "context": "ulysses"}, {}),
    beside(GPT, {"tp": 4} | PER_OPERATOR, BF16 | {"micro_batch": 3}),
    beside(LLAMA | {"dropout": 0.1}, {"fsdp": 2} | PER_OPERATOR, {"precision": "fp32"}),
    # six ranks each: shards over three of what two divide, beside a few settings and not in the pairs
    beside(NARROW, {"fsdp": 3, "recompute": "full"}, BF16 | {"micro_batches": 2, "micro_batch": 3}),
    beside(GPT, {"fsdp": 3, "sequence_parallel": False, "reduction": "micro-batch"}, {"micro_batches": 2}),
]
CASES = [*(case_of(choice) for choice in pairwise(SETTINGS)), *BESIDE]


@pytest.fixture(scope="module")
def measured() -> dict[Case, tuple[Beside, ...]]:
    """Every case's memory, predicted and measured, on every rank."""
    with without_workspace():  # the ranks are forked inside, and inherit it
        return run_cases(CASES, measure, deadline_s=150.0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.layout.world_size}-{case.label}")
def test_every_moment_is_predicted_on_every_rank(case: Case, measured: dict[Case, tuple[Beside, ...]]) -> None:
    """As in test_memory_ranks: state to the byte, totals but for scalars, in fp32 every component (of pipelines between
    the phases alone)."""
    is_fp32 = case.workload.precision is Precision.FP32 and case.layout.pp == 1
    assert len(measured[case]) == case.layout.world_size
    for rank, found in enumerate(measured[case]):
        assert not found.states_off(), f"rank {rank}"
        assert not found.totals_off(SCALARS), f"rank {rank}"
        assert not found.components_off(allowed=SCALARS), f"rank {rank}"
        assert not is_fp32 or not found.components_off(Moment, SCALARS), f"rank {rank}"
