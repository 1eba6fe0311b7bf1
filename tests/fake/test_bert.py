"""BERT's memory on one process: formula against allocator at every moment, pairwise over the settings. It learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from suite.case import case_from
from suite.pairwise import pairwise
from suite.spec import Precision
from tests.fake.measured import measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.fake

MODEL = {"family": "bert", "layers": 2, "hidden": 96, "heads": 3, "ffn": 200, "vocab": 300, "max_positions": 200}
SETTINGS: dict[str, list[Any]] = {
    "recompute": ["none", "selective", "selective-op", "full", "every-2"],
    "precision": ["fp32", "bf16-mixed", "bf16"],
    "attention": ["flash", "eager"],
    "loss": ["plain", "chunked"],
    "micro_batches": [1, 2],
    "micro_batch": [2, 3],
    "seq_len": [17, 48],
    "masking": ["tokens", "spans"],
    "dropout": [0.0, 0.1],
}
#: a loss's, a norm a parameter, AdamW's few
SCALARS = 600
#: a chunked loss of one sequence: the bias's gradient of a slice is taken to be a view, once
EXTRA = [({"loss": "chunked", "micro_batch": 1, "seq_len": 17}, 300 * 4), ({"micro_batch": 1, "seq_len": 5}, 0)]
CHOICES = [*((choice, 0) for choice in pairwise(SETTINGS)), *EXTRA]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workspace grows with the threads; one is enough to be exact about."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.parametrize(("choice", "over"), CHOICES, ids=lambda value: str(value))
def test_every_moment_is_predicted(choice: dict[str, Any], over: int) -> None:
    """Exact but for scalars and the padding's bias: states to the byte, and every total. In bf16 oneDNN's workspace is
    left out on both sides."""
    settings = dict(choice)
    model = MODEL | {key: settings.pop(key) for key in ("masking", "dropout") if key in settings}
    layout = {"recompute": settings.pop("recompute", "none")}
    case = case_from({"model": model, "layout": layout, "workload": {"precision": "fp32"} | settings})
    is_lost = settings.get("attention") == "eager" and layout["recompute"] == "none"
    bias = case.workload.micro_batch * case.workload.seq_len * 4 if is_lost else 0
    with without_workspace():
        found = measure(case)
    assert not found.states_off()
    assert not found.totals_off(SCALARS + bias + over)
    if case.workload.precision is Precision.FP32:
        assert not found.components_off(allowed=SCALARS + bias + over)
    assert abs(found.peak_error()) < 0.004
