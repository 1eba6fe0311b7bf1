"""Formula against allocator on every rank, every moment: DeepSpeed's stages and torch's ZeroRedundancyOptimizer."""

from __future__ import annotations

import gc
from functools import cache, partial
from typing import Any

import pytest

from suite.case import Case, case_from
from tests.distributed import zero_runs  # imports DeepSpeed once, before ranks are forked
from tests.distributed.ranks import Ran, run_jobs
from tests.distributed.test_memory_ranks import MODELS
from tests.fake.measured import Beside, measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.distributed
assert zero_runs.CPU.type == "cpu"

SMALL = {"seq_len": 5, "micro_batch": 1}  # the reductions are the peak, else the activations
WIDE = MODELS["llama"] | {"vocab": 4001}  # its embedding alone is beyond a bucket of 1 MiB
OFFLOADED = {"bucket_mib": 1, "offload": "optimizer"}


def case_of(model: dict[str, Any], layout: dict[str, Any], **workload: Any) -> Case:
    """A case of odd sizes; DeepSpeed's but for `engine`."""
    sizes = {"seq_len": 40, "micro_batch": 3, "precision": "fp32"}
    return case_from({"model": model, "layout": layout, "workload": sizes | workload})


GPT, LLAMA, NARROW = MODELS["gpt"], MODELS["llama"], MODELS["narrow"]
BF16, FULL, TORCH = "bf16-mixed", {"recompute": "full"}, {"engine": "torch"}
STAGE_0 = {"engine": "deepspeed"}
CASES = [
    case_of(GPT, {"dp": 2} | STAGE_0, micro_batches=2),
    case_of(LLAMA, {"dp": 2} | STAGE_0 | FULL, precision=BF16, **SMALL),
    *(
        case
        for stage in (1, 2, 3)
        for case in (
            case_of(GPT, {"dp": 2, "zero": stage, "bucket_mib": 1}, micro_batches=3, precision=BF16),
            case_of(LLAMA, {"dp": 3, "zero": stage, "bucket_mib": 1} | FULL, **SMALL),
            case_of(WIDE, {"dp": 3, "zero": stage, "bucket_mib": 1}, micro_batches=2, **SMALL),
            case_of(NARROW, {"dp": 2, "zero": stage, "bucket_mib": 1, "recompute": "selective"}, attention="eager"),
            case_of(GPT, {"dp": 2, "zero": stage} | OFFLOADED, micro_batches=2, precision=BF16),
        )
    ),
    case_of(LLAMA, {"dp": 2, "zero": 2}, optimizer="sgd"),  # DeepSpeed's own bucket: 2 GB, allocated and untouched
    case_of(LLAMA, {"dp": 2, "zero": 2, "bucket_mib": 1}, loss="chunked"),
    case_of(NARROW, {"dp": 2, "zero": 3, "bucket_mib": 1, "offload": "parameters"} | FULL, optimizer="sgd"),
    case_of(GPT, {"dp": 3, "zero": 1} | TORCH, micro_batches=2),
    case_of(LLAMA, {"dp": 2, "zero": 1} | TORCH | FULL, precision=BF16, optimizer="sgd"),
]


def measured_alone(case: Case, rank: int) -> Beside:
    """As every memory pass, without pytest's heap to be searched by each of the engine's garbage collections."""
    if not gc.get_freeze_count():
        gc.freeze()
    return measure(case, rank)


@cache
def runs(ranks: int) -> dict[Case, Ran[Beside]]:
    """All cases on so many ranks, in one fork."""
    mine = [case for case in CASES if case.layout.dp == ranks]
    with without_workspace():  # the ranks are forked inside, and inherit it
        return dict(zip(mine, run_jobs(ranks, [partial(measured_alone, case) for case in mine], 150), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model.ffn}-{case.label}")
def test_every_moment_is_predicted_on_every_rank(case: Case) -> None:
    for rank, found in enumerate(runs(case.layout.dp)[case].result()):
        assert not found.states_off(), f"rank {rank}"
        assert not found.totals_off(), f"rank {rank}"
        assert not found.components_off(), f"rank {rank}"
