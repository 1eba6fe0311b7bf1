"""Formula against allocator on one process: every optimizer and update kernel, its state and its step's temporaries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from suite.case import Case, case_from
from suite.record import Moment
from suite.spec import OptimizerKind
from tests.fake.measured import SCALARS, measure
from tests.fake.workspace import without_workspace

pytestmark = pytest.mark.fake

#: 101 and 60 wide: rows and columns differ, blocks of 256 are not full; with few tokens the update is the peak
GPT = {"layers": 3, "hidden": 60, "heads": 3, "ffn": 101, "vocab": 301, "max_positions": 12, "norm": "layernorm",
       "activation": "gelu", "position": "learned", "bias": True, "tied": True}  # fmt: skip
GQA = {"layers": 2, "hidden": 96, "heads": 6, "kv_heads": 2, "ffn": 230, "vocab": 77, "max_positions": 12}


def case_of(model: dict[str, Any], optimizer: str, kernel: str) -> Case:
    """Two short sequences, in fp32."""
    workload = {"seq_len": 4, "micro_batch": 2, "precision": "fp32", "attention": "eager", "optimizer": optimizer}
    return case_from({"model": model, "workload": workload | {"optimizer_kernel": kernel}})


CASES = [
    case_of(GPT, "adamw", "foreach"),
    case_of(GQA, "adamw", "loop"),
    case_of(GQA, "sgd", "foreach"),
    case_of(GPT, "sgd", "loop"),
    case_of(GPT, "adafactor", "foreach"),
    case_of(GQA, "adafactor", "loop"),
    case_of(GPT, "muon", "auto"),
    case_of(GQA, "adam-8bit", "loop"),
]
#: in which the CPU's copy turns a tall bf16 matrix: 60 rows of 60 (aten/src/ATen/native/Copy.cpp)
TURNED = {OptimizerKind.MUON: 60 * 60 * 2}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_every_moment_is_predicted(case: Case) -> None:
    """Exact but for scalars, the update's highest instant too. oneDNN's workspace in Muon's bf16 products is left out
    on both sides."""
    with without_workspace():
        found = measure(case)
    assert not found.states_off()
    allowed = SCALARS + TURNED.get(case.workload.optimizer, 0)
    assert not found.totals_off(allowed)
    assert not found.components_off(Moment, allowed)
