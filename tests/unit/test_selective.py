"""Selective checkpointing per operator: what is kept of a block, by name, and what is not run again."""

from __future__ import annotations

from typing import Any

import pytest

from memory.estimate import MemoryModel
from suite.case import case_from
from suite.operators import Region

pytestmark = pytest.mark.unit

LLAMA = {"family": "decoder", "layers": 1, "hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 160, "vocab": 128}
GPT = LLAMA | {"kv_heads": 4, "norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True}
CORE = {"attention.core output", "attention.core log-sum-exp"}


def block_of(model: dict[str, Any], attention: str = "flash", **layout: Any) -> Region:
    """The rerun part of the model's block."""
    workload = {"seq_len": 32, "precision": "fp32", "attention": attention}
    layout = {"recompute": "selective-op", **layout}
    ledger = MemoryModel(case_from({"model": model, "layout": layout, "workload": workload})).ledger_of_share(0)
    (region,) = (part for placed in ledger.segments for part in placed.segment.body if isinstance(part, Region))
    return region


def kept(model: dict[str, Any], attention: str = "flash", **layout: Any) -> set[str]:
    return {array.name for array in block_of(model, attention, **layout).kept}


def test_every_other_product_is_kept_from_the_first_on() -> None:
    """wq 1, wk 2, wv 3, wo 4, gate 5, up 6, down 7; and wq 1, wk 2, wv 3, wo 4, up 5, down 6."""
    odd = {f"{name} output" for name in ("attention.wq", "attention.wv", "mlp.gate", "mlp.down")}
    assert kept(LLAMA) == odd | CORE
    assert kept(GPT) == {"attention.wq output", "attention.wv output", "mlp.up output"} | CORE


def test_attention_in_the_open_and_a_rings_are_run_again() -> None:
    products = kept(LLAMA) - CORE
    assert kept(LLAMA, "eager") == kept(LLAMA, cp=2) == products
    assert kept(LLAMA, cp=2, context="ulysses") == products | CORE


def test_what_sequence_parallelism_scatters_is_kept() -> None:
    assert kept(GPT, tp=2) - kept(GPT) == {"attention.wo output, summed", "mlp.down output, summed"}


def test_other_modes_keep_nothing() -> None:
    assert kept(LLAMA, recompute="full") == kept(LLAMA, recompute="selective") == set()


def test_flops_that_are_not_run_again_do_not_count() -> None:
    """What is run again, for 32 tokens: 2 h f each of wk (h x kv), wo (h x h) and up (h x f); the full rerun has also
    4 s h a token of attention."""

    def again(recompute: str) -> float:
        workload = {"seq_len": 32, "precision": "fp32"}
        layout = {"recompute": recompute}
        ledger = MemoryModel(case_from({"model": LLAMA, "layout": layout, "workload": workload})).ledger
        return ledger.recompute_flops()

    h, kv, f = 64, 32, 160
    assert again("selective-op") == 32 * 2 * (h * kv + h * h + h * f)
    assert again("full") == 32 * (2 * (2 * h * h + 2 * h * kv + 3 * h * f) + 4 * 32 * h)
