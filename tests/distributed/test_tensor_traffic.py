"""Formula against probe under tensor parallelism: bytes sent, payload and calls of every collective, on every rank."""

from __future__ import annotations

from typing import Any

import pytest

from suite.case import Case
from suite.record import Sample
from tests.distributed.ranks import run_cases
from tests.distributed.test_traffic import BF16, case_of, measure, measured, predicted

pytestmark = pytest.mark.distributed

#: 301 rows divide by neither 2 nor 4
GPT = {"layers": 2, "hidden": 20, "heads": 4, "ffn": 28, "vocab": 301, "max_positions": 16, "norm": "layernorm",
       "activation": "gelu", "position": "learned", "bias": True, "tied": True}  # fmt: skip
LLAMA = {"layers": 3, "hidden": 26, "heads": 8, "kv_heads": 4, "head_dim": 4, "ffn": 36, "vocab": 302,
         "max_positions": 16}  # fmt: skip
#: 3 MiB of gradients a rank, in buckets of 1
LARGE = {"layers": 2, "hidden": 128, "heads": 4, "ffn": 512, "vocab": 2047, "max_positions": 16}
DROPPING = {"dropout": 0.1}
WHOLE = {"sequence_parallel": False}

CASES = [
    case_of(GPT, {"tp": 2}, 2, micro_batch=2),
    case_of(LLAMA, {"tp": 2, "recompute": "full"}, **BF16),
    case_of(GPT | DROPPING, {"tp": 2, "recompute": "every-2"}, micro_batch=3, loss="chunked"),
    case_of(LLAMA, {"tp": 2, "recompute": "selective"}, loss="chunked", seq_len=12),
    case_of(GPT, {"tp": 2, **WHOLE, "recompute": "full"}, 2, **BF16),
    case_of(LLAMA | DROPPING, {"tp": 2, **WHOLE, "recompute": "every-2"}, loss="chunked"),
    case_of(LLAMA, {"tp": 4, "recompute": "selective-op"}, **BF16),
    case_of(GPT, {"tp": 4, **WHOLE}),
    case_of(GPT, {"tp": 2, "fsdp": 2, "recompute": "full"}, 2),
    case_of(LLAMA, {"tp": 2, "fsdp": 2, "reduction": "micro-batch"}, 2, **BF16),
    case_of(LLAMA, {"tp": 2, "fsdp": 2, "reshard_after_forward": False, **WHOLE}, **BF16),
    case_of(GPT | DROPPING, {"tp": 2, "dp": 2, "recompute": "selective-op"}, 2),
    case_of(LARGE, {"tp": 2, "dp": 2, "bucket_mib": 1, "reduction": "micro-batch"}, 2, **BF16),
    case_of(LLAMA, {"tp": 2, "pp": 2, "recompute": "every-2"}, 4),
    case_of(LLAMA, {"tp": 2, "cp": 2}, seq_len=16, loss="chunked"),
    case_of(GPT, {"tp": 2, "fsdp": 2, "dp": 2}, 2),
]


@pytest.fixture(scope="module")
def heard() -> dict[Case, tuple[list[Sample], ...]]:
    """Every case's samples, rank by rank."""
    return run_cases(CASES, measure, deadline_s=120.0)


def name(case: Any) -> str:
    """What the case varies."""
    return f"{case.model.hidden}-{case.model.dropout}-{case.label}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_formulas_and_probe_are_equal_to_the_byte(case: Case, heard: dict[Case, tuple[list[Sample], ...]]) -> None:
    assert len(heard[case]) == case.layout.world_size
    for rank, samples in enumerate(heard[case]):
        assert measured(samples) == predicted(case, rank), f"rank {rank}"
