"""Formula against allocator on every rank of rings and Ulysses groups, alone and with DDP or FSDP2."""

from __future__ import annotations

from typing import Any

import pytest

from suite.case import Case, case_from
from suite.pairwise import pairwise
from suite.record import Moment
from suite.spec import Precision
from tests.distributed.ranks import run_cases
from tests.distributed.test_memory_ranks import SCALARS
from tests.fake.measured import Beside, measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.distributed

#: wide heads beside everything else, so that the highest instants of forward and backward lie in attention
GQA = {"layers": 2, "hidden": 24, "heads": 12, "kv_heads": 6, "head_dim": 16, "ffn": 16, "vocab": 11,
       "max_positions": 256}  # fmt: skip
GPT = {"layers": 2, "hidden": 96, "heads": 6, "ffn": 16, "vocab": 13, "max_positions": 256, "norm": "layernorm",
       "activation": "gelu", "position": "learned", "bias": True, "tied": True}  # fmt: skip
MODELS = {"gqa": GQA, "mha": GQA | {"kv_heads": 12}, "gpt": GPT}
METHODS: dict[str, dict[str, Any]] = {
    "ring": {}, "unbalanced": {"load_balance": False}, "ulysses": {"context": "ulysses"},
}  # fmt: skip
RECOMPUTE = ["none", "selective", "selective-op", "full"]
PRECISION = ["fp32", "bf16-mixed"]
ALONE: dict[str, list[Any]] = {
    "method": list(METHODS),
    "model": list(MODELS),
    "recompute": RECOMPUTE,
    "precision": PRECISION,
    "attention": ["flash", "eager"],
    "micro_batch": [1, 2],
    "micro_batches": [1, 2],
}
#: with each of the data-parallel strategies
BESIDE: dict[str, list[Any]] = {
    "axis": ["dp", "fsdp"],
    "method": list(METHODS),
    "precision": PRECISION,
    "micro_batches": [1, 2],
    "loss": ["plain", "chunked"],
}
#: the fewest tokens a rank of two, two chunks of them, for which the fused kernel's packing in bf16 is exact
TOKENS = 64


def case_of(choice: dict[str, Any], ranks: int, **degrees: int) -> Case:
    """The case of a choice of settings over so many ranks of a sequence."""
    layout = {"cp": ranks, "recompute": choice.get("recompute", "none")} | METHODS[choice["method"]] | degrees
    knobs = ("precision", "attention", "micro_batch", "micro_batches", "loss")
    workload = {key: choice[key] for key in knobs if key in choice}
    sizes = {"seq_len": ranks * TOKENS, "micro_batch": 2}
    model = MODELS[choice.get("model", "gqa")]
    return case_from({"model": model, "layout": layout, "workload": sizes | workload})


THREE = [
    {"method": "ring", "precision": "bf16-mixed", "attention": "flash"},
    {"method": "unbalanced", "precision": "fp32", "attention": "eager"},
    {"method": "ulysses", "precision": "bf16-mixed", "attention": "eager", "model": "mha", "micro_batch": 1},
]
CASES = [
    *(case_of(choice, 2) for choice in pairwise(ALONE)),
    *(case_of(choice, 3) for choice in THREE),
    *(case_of(choice, 2, **{choice["axis"]: 2}) for choice in pairwise(BESIDE)),
]


@pytest.fixture(scope="module")
def measured() -> dict[Case, tuple[Beside, ...]]:
    """Every case's memory, predicted and measured, on every rank."""
    with without_workspace():  # the ranks are forked inside, and inherit it
        return run_cases(CASES, measure, deadline_s=150.0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.layout.world_size}-{case.label}")
def test_every_moment_is_predicted_on_every_rank(case: Case, measured: dict[Case, tuple[Beside, ...]]) -> None:
    """States to the byte and totals but for scalars, each rank against its own estimate: their shares of the mask
    differ. Components of the highest instants are compared in fp32 (see test_memory_ranks)."""
    assert len(measured[case]) == case.layout.world_size
    for rank, found in enumerate(measured[case]):
        assert not found.states_off(), f"rank {rank}"
        assert not found.totals_off(SCALARS), f"rank {rank}"
        assert not found.components_off(allowed=SCALARS), f"rank {rank}"
        if case.workload.precision is Precision.FP32:
            assert not found.components_off(Moment, SCALARS), f"rank {rank}"
