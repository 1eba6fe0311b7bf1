"""FSDP2 over blocks of several kinds: what is gathered ahead is the next block's own, and nothing is left behind."""

from __future__ import annotations

from typing import Any

import pytest

from memory.estimate import MemoryModel
from suite.case import case_from
from suite.record import Component, Moment

#: one dense block, or two, before mixtures, which are smaller
MODEL: dict[str, Any] = {
    "family": "decoder", "layers": 6, "hidden": 32, "heads": 2, "ffn": 192, "vocab": 64, "max_positions": 64,
    "experts": {"count": 4, "top_k": 2, "ffn": 16},
}  # fmt: skip


@pytest.mark.parametrize("dense", [1, 2, 3])
@pytest.mark.parametrize(
    "layout", [{}, {"forward_prefetch": 2}, {"backward_prefetch": 3}, {"reduction": "micro-batch"}]
)
def test_nothing_that_was_gathered_is_left_after_the_backward_pass(dense: int, layout: dict[str, Any]) -> None:
    case = case_from(
        {
            "model": MODEL | {"dense_layers": dense},
            "layout": {"fsdp": 2, **layout},
            "workload": {"seq_len": 16, "micro_batches": 2, "precision": "fp32"},
        }
    )
    found = MemoryModel(case).estimate(0).by_moment
    for moment in (Moment.AFTER_BACKWARD, Moment.STEADY):
        assert found[moment].get(Component.GATHERED, 0) == 0
