"""Formula against allocator on one process: real steps of small models, every moment, pairwise over the settings."""

from __future__ import annotations

import os

import pytest
import torch

from suite.case import Case, case_from
from tests.fake.measured import measure

pytestmark = pytest.mark.fake

GPT = {"layers": 2, "hidden": 96, "heads": 3, "ffn": 384, "vocab": 300, "max_positions": 900, "norm": "layernorm",
       "activation": "gelu", "position": "learned", "bias": True, "tied": True}  # fmt: skip
GQA = {"layers": 3, "hidden": 96, "heads": 6, "kv_heads": 2, "ffn": 160, "vocab": 300, "max_positions": 900}
MQA = {**GQA, "kv_heads": 1, "head_dim": 24, "tied": True, "layers": 1}
GLM = {**GQA, "qkv_bias": True, "rope_fraction": 0.5, "head_dim": 32}

#: model, then what differs from fp32, flash, plain, adamw, none, 1 micro-batch
CASES = [
    (GPT, {}),
    (GPT, {"attention": "eager", "recompute": "selective", "micro_batches": 3}),
    (GPT, {"loss": "chunked", "recompute": "full", "optimizer": "sgd", "seq_len": 51}),
    (GPT, {"precision": "bf16-mixed", "recompute": "every-2", "micro_batches": 2}),
    (GPT, {"precision": "bf16-mixed", "attention": "eager", "loss": "chunked"}),
    (GQA, {"recompute": "full", "micro_batches": 2}),
    (GQA, {"attention": "eager", "loss": "chunked", "recompute": "every-2"}),
    (GQA, {"precision": "bf16-mixed", "optimizer": "sgd", "recompute": "selective"}),
    (GQA, {"precision": "bf16-mixed", "attention": "eager", "recompute": "full"}),
    (GQA, {"seq_len": 800, "micro_batch": 1}),
    (MQA, {"attention": "eager", "optimizer": "sgd", "micro_batches": 2}),
    (MQA, {"precision": "bf16-mixed", "loss": "chunked", "micro_batches": 3, "recompute": "selective"}),
    (MQA, {"loss": "chunked", "seq_len": 192, "micro_batch": 1}),
    (GLM, {"recompute": "selective", "seq_len": 192}),
    (GLM, {"precision": "bf16-mixed", "recompute": "every-2", "attention": "eager"}),
]


def case_of(model: dict[str, object], changes: dict[str, object]) -> Case:
    """A case on one rank; odd sizes on purpose."""
    workload = {"seq_len": 48, "micro_batch": 3, "precision": "fp32"}
    workload |= {key: value for key, value in changes.items() if key != "recompute"}
    layout = {"recompute": changes.get("recompute", "none")}
    return case_from({"model": model, "layout": layout, "workload": workload})


@pytest.fixture(autouse=True)
def _as_many_threads_as_a_worker() -> None:
    """A worker of one rank has every core, and the kernels' workspace grows with the threads."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(("model", "changes"), CASES, ids=lambda value: "-".join(map(str, value.values()))[:60])
def test_every_moment_is_predicted(model: dict[str, object], changes: dict[str, object]) -> None:
    """Exact but for scalars in fp32. In bf16 oneDNN's workspace is approximate: it may move a peak, never a level."""
    found = measure(case_of(model, changes))
    assert not found.states_off()
    assert not found.components_off()
    if changes.get("precision") != "bf16-mixed":
        assert not found.totals_off()
    assert not found.peak_off()
