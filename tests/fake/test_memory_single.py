"""Formula against allocator on one process: real steps of small models, every moment, pairwise over the settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from suite.case import Case, case_from
from suite.pairwise import pairwise
from suite.record import Moment
from suite.spec import Precision
from tests.fake.measured import measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.fake

#: In bf16 the fused attention's inner products pack too, a tile at a time.
TILE = 16 * 1024

GPT = {"layers": 2, "hidden": 96, "heads": 3, "ffn": 384, "vocab": 300, "max_positions": 900, "norm": "layernorm",
       "activation": "gelu", "position": "learned", "bias": True, "tied": True}  # fmt: skip
GQA = {"layers": 3, "hidden": 96, "heads": 6, "kv_heads": 2, "ffn": 160, "vocab": 1000, "max_positions": 900}
MODELS = {
    "gpt": GPT,
    "gqa": GQA,
    "mha-tied": {**GQA, "kv_heads": 6, "tied": True, "layers": 2},
    "mqa-wide-heads": {**GQA, "kv_heads": 1, "head_dim": 24, "layers": 1},
    "half-rotary-biased": {**GQA, "qkv_bias": True, "rope_fraction": 0.5, "head_dim": 20, "tied": True},
    "one-odd-head": {**GPT, "layers": 1, "heads": 1, "head_dim": 33, "ffn": 101, "tied": False, "activation": "swiglu"},
}
SETTINGS: dict[str, list[Any]] = {
    "model": list(MODELS),
    "recompute": ["none", "selective", "selective-op", "full", "every-2"],
    "precision": ["fp32", "bf16-mixed"],
    "attention": ["flash", "eager"],
    "loss": ["plain", "chunked"],
    "optimizer": ["adamw", "sgd"],
    "micro_batches": [1, 2, 3],
    "micro_batch": [1, 2, 3],
    "seq_len": [
        17,
        48,
        192,
    ],  # 17: fewer slices of the loss than asked for; 48 and 192: other tiles of the fused kernel
}
CHOICES = pairwise(SETTINGS)
#: beyond the pairs: sequences of one and of several tiles of keys, and of an odd length
EXTRA = [
    {"model": "gqa", "seq_len": 800, "micro_batch": 1, "precision": "fp32"},
    {"model": "gqa", "seq_len": 800, "micro_batch": 1, "precision": "bf16-mixed", "recompute": "full"},
    {"model": "half-rotary-biased", "seq_len": 65, "micro_batch": 3, "precision": "bf16-mixed", "loss": "chunked"},
    {"model": "mqa-wide-heads", "seq_len": 1, "attention": "eager", "precision": "fp32"},
]


def case_of(choice: dict[str, Any]) -> Case:
    """The case of a choice of settings, on one rank."""
    workload = {key: value for key, value in choice.items() if key not in ("model", "recompute")}
    layout = {"recompute": choice.get("recompute", "none")}
    return case_from({"model": MODELS[choice["model"]], "layout": layout, "workload": workload})


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Workspace grows with the threads; one is enough to be exact about, and quick where other tests are running."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("choice", CHOICES + EXTRA, ids=lambda choice: "-".join(map(str, choice.values())))
def test_every_moment_is_predicted(choice: dict[str, Any]) -> None:
    """Exact but for scalars: states to the byte, every total, and in fp32 every component of every moment. In bf16
    oneDNN's workspace is left out on both sides."""
    case = case_of(choice)
    with without_workspace():
        found = measure(case)
    is_fp32 = case.workload.precision is Precision.FP32
    assert not found.states_off()
    assert not found.components_off()
    assert not found.totals_off() if is_fp32 else not found.totals_off(TILE)
    assert not found.components_off(Moment) if is_fp32 else abs(found.peak_error()) < 0.005


@pytest.mark.parametrize(("name", "recompute", "attention", "threads"), [
    ("gpt-1m", "none", "flash", 1), ("gpt-1m", "full", "eager", 1), ("llama-1m", "selective", "eager", 1),
    ("llama-1m", "full", "flash", 1), ("llama-1m", "selective-op", "flash", 1), ("llama-1m", "none", "flash", 2),
])  # fmt: skip
def test_the_peak_in_bf16_is_right_with_onednns_workspace(
    name: str, recompute: str, attention: str, threads: int
) -> None:
    """Models and batches of the size that the bench trains: what is approximate is small beside them."""
    torch.set_num_threads(threads)
    workload = {"seq_len": 128, "micro_batch": 4, "precision": "bf16-mixed", "attention": attention}
    case = case_from({"model": name, "layout": {"recompute": recompute}, "workload": workload})
    assert abs(measure(case).peak_error()) < 0.005
