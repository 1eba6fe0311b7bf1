"""What is refused before anything is traced, in one line."""

from __future__ import annotations

from typing import Any

import pytest

from memory.trace import check, notes_of, ranks_to_trace
from suite.case import Case, case_from
from suite.parse import SpecError

pytestmark = pytest.mark.unit


def case_with(layout: dict[str, Any], device: str = "cpu") -> Case:
    workload = {"seq_len": 64, "micro_batches": 2}
    return case_from({"model": "gpt-1m", "layout": layout, "workload": workload, "cluster": {"device": device}})


@pytest.mark.parametrize(
    ("layout", "rank", "words"),
    [
        ({"fsdp": 4}, 4, "--rank: 4 is not a rank of this layout; its ranks are 0 to 3"),
        ({"fsdp": 4}, -1, "0 to 3"),
        ({"dp": 2, "zero": 2}, 0, "DeepSpeed's engine"),
    ],
)
def test_refusals(layout: dict[str, Any], rank: int, words: str) -> None:
    with pytest.raises(SpecError, match=words) as refused:
        check(case_with(layout), rank)
    assert "\n" not in str(refused.value)


def test_offload_is_refused() -> None:
    with pytest.raises(SpecError, match=r"layout.offload\(parameters\)"):
        check(case_with({"fsdp": 2, "offload": "parameters"}, "h100-sxm"), 0)


def test_the_fullest_rank_is_traced_unless_one_is_named() -> None:
    """The last stage holds the head and its logits, which are most of this model."""
    shape = {"layers": 2, "hidden": 16, "heads": 2, "ffn": 16, "vocab": 32000, "max_positions": 64}
    workload = {"seq_len": 64, "micro_batch": 8, "micro_batches": 2}
    case = case_from({"model": shape, "layout": {"pp": 2}, "workload": workload})
    assert ranks_to_trace(case) == (1,)
    assert ranks_to_trace(case, 0) == (0,)


def test_a_gpu_has_other_kernels_and_the_trace_says_so() -> None:
    assert not notes_of(case_with({}))
    assert "h100-sxm" in notes_of(case_with({}, "h100-sxm"))[0]
