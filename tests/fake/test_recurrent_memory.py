"""Recurrent models: formula against allocator on one process, every moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from suite.case import case_from
from suite.record import Moment
from suite.spec import Precision
from tests.fake.measured import measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.fake

#: (model, layout, workload): every value of each setting at least twice; (40, 1) and (40, 2): wide and short
TRIALS: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({"cell": "lstm"}, {}, {"precision": "fp32"}),
    ({"cell": "gru", "tied": True}, {}, {"precision": "fp32", "micro_batches": 2}),
    ({"cell": "lstm", "tied": True}, {"recompute": "full"}, {"precision": "fp32", "loss": "chunked"}),
    ({"cell": "gru", "dropout": 0.1}, {"recompute": "every-2"}, {"precision": "fp32", "micro_batches": 3}),
    ({"cell": "lstm"}, {}, {"precision": "fp32", "micro_batch": 40, "seq_len": 1}),
    ({"cell": "gru"}, {}, {"precision": "fp32", "micro_batch": 40, "seq_len": 2}),
    ({"cell": "lstm", "dropout": 0.1}, {}, {"precision": "bf16-mixed"}),
    ({"cell": "gru", "tied": True}, {"recompute": "full"}, {"precision": "bf16-mixed", "micro_batches": 2}),
    ({"cell": "gru"}, {}, {"precision": "bf16", "loss": "chunked"}),
    ({"cell": "lstm"}, {"recompute": "full"}, {"precision": "fp16-mixed", "optimizer": "sgd"}),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: "-".join(map(str, (v for p in trial for v in p.values()))))
def test_every_moment_is_predicted(trial: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> None:
    """Exact but for scalars, as for decoders. In bf16 oneDNN's workspace is left out on both sides."""
    model, layout, workload = trial
    shape = {"family": "recurrent", "layers": 3, "hidden": 48, "vocab": 300}
    case = case_from({"model": shape | model, "layout": layout,
                      "workload": {"seq_len": 17, "micro_batch": 3} | workload})  # fmt: skip
    with without_workspace():
        found = measure(case)
    assert not found.states_off()
    assert not found.totals_off()
    assert not found.components_off(Moment) if case.workload.precision is Precision.FP32 else not found.components_off()


@pytest.mark.parametrize(("name", "recompute"), [("lstm-1m", "none"), ("gru-1m", "full")])
def test_the_peak_in_bf16_is_right_with_onednns_workspace(name: str, recompute: str) -> None:
    workload = {"seq_len": 64, "micro_batch": 4, "precision": "bf16-mixed"}
    case = case_from({"model": name, "layout": {"recompute": recompute}, "workload": workload})
    assert abs(measure(case).peak_error()) < 0.004
