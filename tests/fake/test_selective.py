"""Selective checkpointing per operator: what torch runs again, counted by torch's own counter of FLOPs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from memory.estimate import MemoryModel
from parallelism.strategies import parallelize
from parallelism.training import build_model
from suite.case import Case, case_from

pytestmark = pytest.mark.fake

LLAMA = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 160, "vocab": 128, "max_positions": 64}


def case_of(recompute: str, attention: str) -> Case:
    """Two sequences of 32 tokens."""
    workload = {"seq_len": 32, "micro_batch": 2, "precision": "fp32", "attention": attention}
    return case_from({"model": LLAMA, "layout": {"recompute": recompute}, "workload": workload})


def flops(case: Case) -> Any:
    """Of a forward and backward pass."""
    model = parallelize(build_model(case, torch.device("cpu")), None, case)
    ids = torch.zeros(2, 32, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(ids, ids).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("attention", ["flash", "eager"])
def test_torch_runs_again_what_the_ledger_says(attention: str) -> None:
    case = case_of("selective-op", attention)
    again = MemoryModel(case).ledger.recompute_flops()
    assert flops(case) - flops(case_of("none", attention)) == again > 0
