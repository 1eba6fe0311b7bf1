"""Formula against allocator on one process: real steps of small encoder-decoders, every moment."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from suite.case import case_from
from suite.record import Moment
from tests.fake.measured import measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.fake

#: three blocks of the decoder: the first and the last play parts of their own for what the encoder made
SIZES = {"layers": 5, "encoder_layers": 2, "hidden": 48, "heads": 3, "ffn": 100, "vocab": 150}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": SIZES | {"family": "transformer"},
    "biased": SIZES | {"family": "transformer", "attention_bias": True, "tied": False, "label_smoothing": 0.0},
    "t5": SIZES | {"family": "t5", "head_dim": 12, "sentinels": 20},
    "gated": SIZES | {"family": "t5", "sentinels": 20, "feed": "gated-gelu", "tied": False},
}
CHOICES: list[tuple[str, str, str, str, str, int]] = [
    ("transformer", "none", "fp32", "flash", "plain", 1),
    ("transformer", "selective", "bf16-mixed", "eager", "chunked", 2),
    ("biased", "full", "fp32", "eager", "plain", 2),
    ("t5", "none", "fp32", "eager", "plain", 2),
    ("t5", "full", "bf16-mixed", "flash", "plain", 1),
    ("t5", "selective-op", "fp32", "flash", "chunked", 1),
    ("gated", "every-2", "fp32", "flash", "plain", 1),
    ("gated", "selective", "bf16-mixed", "eager", "plain", 2),
]


@pytest.mark.parametrize(("choice", "rows"), [*((choice, 3) for choice in CHOICES), (CHOICES[2], 1), (CHOICES[3], 1)])
def test_every_moment_is_predicted(choice: tuple[str, str, str, str, str, int], rows: int) -> None:
    """Exact but for scalars; in bf16 the fused attention's inner products pack too, a tile at a time."""
    torch.set_num_threads(1)
    model, recompute, precision, attention, loss, micro_batches = choice
    workload = {"seq_len": 40, "micro_batch": rows, "micro_batches": micro_batches, "precision": precision,
                "attention": attention, "loss": loss}  # fmt: skip
    case = case_from({"model": MODELS[model], "layout": {"recompute": recompute}, "workload": workload})
    with without_workspace():
        found = measure(case)
    assert not found.states_off()
    assert not found.components_off()
    assert not found.totals_off(1024 if precision == "fp32" else 16 * 1024)
    assert not found.components_off(Moment) if precision == "fp32" else abs(found.peak_error()) < 0.004
