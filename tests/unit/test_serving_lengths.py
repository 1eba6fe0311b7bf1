"""Prompts whose lengths differ."""

from __future__ import annotations

import pytest

from suite.case import Case, case_from
from suite.parse import SpecError
from suite.serving_lengths import prompt_lengths

TINY = {"layers": 2, "hidden": 32, "heads": 2, "vocab": 64, "max_positions": 128}


def case_of(prompts: int, shortest: int) -> Case:
    return case_from({
        "model": TINY, "workload": {"seq_len": 100, "micro_batch": prompts},
        "serving": {"new_tokens": 4, "shortest_prompt": shortest},
    })  # fmt: skip


@pytest.mark.parametrize(
    ("prompts", "shortest", "lengths"),
    [
        (4, 10, (10, 40, 70, 100)),
        (3, 1, (1, 50, 100)),  # 50.5 rounded down
        (3, 0, (100, 100, 100)),
        (2, 100, (100, 100)),
        (1, 10, (100,)),
    ],
)
def test_prompts_are_spread_evenly_from_the_shortest_to_the_longest(
    prompts: int, shortest: int, lengths: tuple[int, ...]
) -> None:
    assert prompt_lengths(case_of(prompts, shortest)) == lengths


def test_a_case_that_is_trained_has_no_prompts() -> None:
    with pytest.raises(SpecError, match=r"serving\.new_tokens: missing"):
        prompt_lengths(case_from({"model": TINY, "workload": {"seq_len": 100}}))
