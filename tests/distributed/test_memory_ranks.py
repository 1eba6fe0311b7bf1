"""Formula against allocator on every rank of forked gloo groups: DDP and FSDP2, every moment."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from suite.case import Case, case_from
from tests.distributed.ranks import run_jobs
from tests.fake.measured import Beside, measure

pytestmark = pytest.mark.distributed

GPT = {"layers": 2, "hidden": 90, "heads": 3, "ffn": 366, "vocab": 301, "max_positions": 128, "norm": "layernorm",
       "activation": "gelu", "position": "learned", "bias": True, "tied": True}  # fmt: skip
LLAMA = {"layers": 3, "hidden": 96, "heads": 6, "kv_heads": 2, "ffn": 161, "vocab": 302, "max_positions": 128}

#: ranks -> (model, layout, workload); 301, 161 and 90 do not divide by 2, 3 and 4 alike: shards are uneven
PLANS: dict[int, list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]] = {
    2: [
        (GPT, {"dp": 2}, {}),
        (LLAMA, {"dp": 2, "recompute": "every-2"}, {"micro_batches": 2, "precision": "bf16-mixed"}),
        (GPT, {"fsdp": 2}, {"micro_batches": 2}),
        (GPT, {"fsdp": 2, "reshard_after_forward": False}, {"precision": "bf16-mixed", "loss": "chunked"}),
        (LLAMA, {"fsdp": 2, "recompute": "full"}, {"precision": "bf16-mixed", "micro_batches": 3}),
        (LLAMA, {"fsdp": 2, "recompute": "selective"}, {"attention": "eager", "optimizer": "sgd"}),
    ],
    3: [
        (GPT, {"fsdp": 3, "recompute": "every-2"}, {"loss": "chunked"}),
        (LLAMA, {"fsdp": 3, "reshard_after_forward": False, "recompute": "full"}, {"micro_batches": 2}),
        (LLAMA, {"fsdp": 3}, {"precision": "bf16-mixed"}),
    ],
    4: [
        (LLAMA, {"dp": 4}, {"attention": "eager", "optimizer": "sgd"}),
        (GPT, {"fsdp": 4}, {"precision": "bf16-mixed"}),
    ],
}


def case_of(model: dict[str, Any], layout: dict[str, Any], workload: dict[str, Any]) -> Case:
    """A case of odd sizes."""
    sizes = {"seq_len": 40, "micro_batch": 3, "precision": "fp32"}
    return case_from({"model": model, "layout": layout, "workload": sizes | workload})


@pytest.fixture(scope="module")
def measured() -> dict[Case, tuple[Beside, ...]]:
    """Every plan's memory, predicted and measured, on every rank."""
    found: dict[Case, tuple[Beside, ...]] = {}
    for ranks, plans in PLANS.items():
        cases = [case_of(*plan) for plan in plans]
        runs = run_jobs(ranks, [partial(measure, case) for case in cases], deadline_s=120.0)
        found |= {case: run.result() for case, run in zip(cases, runs, strict=True)}
    return found


@pytest.mark.parametrize(
    "case", [case_of(*plan) for plans in PLANS.values() for plan in plans], ids=lambda case: case.label
)
def test_every_moment_is_predicted_on_every_rank(case: Case, measured: dict[Case, tuple[Beside, ...]]) -> None:
    """As on one process; each rank against its own estimate, for uneven shards differ."""
    for rank, found in enumerate(measured[case]):
        assert not found.states_off(), f"rank {rank}"
        assert not found.components_off(), f"rank {rank}"
        assert not found.peak_off(), f"rank {rank}"
        if case.workload.precision.value == "fp32":
            assert not found.totals_off(), f"rank {rank}"
