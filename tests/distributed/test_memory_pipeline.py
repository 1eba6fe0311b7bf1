"""Formula against allocator on every rank of forked pipelines: every schedule, every moment, pairwise over choices."""

from __future__ import annotations

from typing import Any

import pytest

from suite.case import Case, case_from
from suite.pairwise import pairwise
from tests.distributed.ranks import run_cases
from tests.distributed.test_memory_ranks import GPT, LLAMA, SCALARS
from tests.fake.measured import Beside, measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.distributed

MODELS = {"gpt": GPT, "llama": LLAMA}
#: schedule -> stages a rank
SCHEDULES = {
    "gpipe": 1, "1f1b": 1, "interleaved-1f1b": 2, "interleaved-zero-bubble": 2, "zbv": 2, "dualpipev": 2,
}  # fmt: skip
SETTINGS: dict[str, list[Any]] = {
    "schedule": list(SCHEDULES),
    "model": list(MODELS),
    "recompute": ["none", "selective", "full"],
    "precision": ["fp32", "bf16-mixed"],
    "micro_batches": [4, 6],
    "kernels": [("flash", "plain"), ("eager", "chunked")],
}


def case_of(choice: dict[str, Any], layers: int = 5, **layout: Any) -> Case:
    """The case of a choice of settings, of odd sizes: two ranks, and five blocks, so that the stages differ."""
    attention, loss = choice.get("kernels", ("flash", "plain"))
    schedule = choice["schedule"]
    pipeline = {"pp": 2, "schedule": schedule, "virtual_stages": SCHEDULES[schedule]} | layout
    workload = {key: choice[key] for key in ("precision", "micro_batches", "optimizer") if key in choice}
    sizes = {"seq_len": 40, "micro_batch": 3, "attention": attention, "loss": loss}
    return case_from({
        "model": MODELS[choice["model"]] | {"layers": layers},
        "layout": pipeline | {"recompute": choice.get("recompute", "none")},
        "workload": sizes | workload,
    })  # fmt: skip


#: longer pipelines, and replicas: averaged by DDP, and by the trainer where DDP cannot
MORE = [
    case_of({"schedule": "1f1b", "model": "gpt", "precision": "fp32", "micro_batches": 6}, pp=4),
    case_of({"schedule": "gpipe", "model": "llama", "precision": "bf16-mixed", "micro_batches": 2}, pp=4),
    case_of({"schedule": "1f1b", "model": "gpt", "precision": "fp32", "micro_batches": 3}, dp=2),
    case_of({"schedule": "zbv", "model": "gpt", "precision": "fp32", "micro_batches": 3}, dp=2),
    case_of({"schedule": "dualpipev", "model": "llama", "precision": "bf16-mixed", "micro_batches": 4}, dp=2),
    case_of({"schedule": "zbv", "model": "llama", "precision": "fp32", "micro_batches": 5}, layers=8, pp=4),
]
#: FSDP2 in each stage; where weights have a pass of their own, forward must leave the parameters whole
SHARDED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"schedule": "gpipe", "model": "llama", "precision": "bf16-mixed", "recompute": "full"}, {}),
    ({"schedule": "1f1b", "model": "gpt", "precision": "fp32", "micro_batches": 3, "recompute": "selective-op"}, {}),
    (
        {"schedule": "1f1b", "model": "llama", "precision": "bf16-mixed"},
        {"forward_prefetch": 1, "backward_prefetch": 2},
    ),
    ({"schedule": "interleaved-1f1b", "model": "gpt", "precision": "bf16-mixed", "recompute": "selective"}, {}),
    (
        {"schedule": "interleaved-zero-bubble", "model": "llama", "precision": "bf16-mixed"},
        {"reshard_after_forward": False},
    ),
    ({"schedule": "zbv", "model": "gpt", "precision": "fp32"}, {"reshard_after_forward": False}),
    ({"schedule": "dualpipev", "model": "gpt", "precision": "bf16-mixed"}, {"reshard_after_forward": False}),
]
CASES = [
    *(case_of(choice) for choice in pairwise(SETTINGS)),
    *MORE,
    *(case_of({"micro_batches": 4, **choice}, fsdp=2, **knobs) for choice, knobs in SHARDED),
]


@pytest.fixture(scope="module")
def measured() -> dict[Case, tuple[Beside, ...]]:
    """Every case's memory, predicted and measured, on every rank."""
    with without_workspace():  # the ranks are forked inside, and inherit it
        return run_cases(CASES, measure, deadline_s=150.0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.layout.world_size}-{case.label}")
def test_every_moment_is_predicted_on_every_rank(case: Case, measured: dict[Case, tuple[Beside, ...]]) -> None:
    """State to the byte, and every moment's total but for scalars. (Passes of several micro-batches interleave, so by
    age the measurement cannot tell what is kept from what passes: components beside the state are not compared.)"""
    assert len(measured[case]) == case.layout.world_size
    for rank, found in enumerate(measured[case]):
        assert not found.states_off(), f"rank {rank}"
        assert not found.totals_off(SCALARS), f"rank {rank}"
