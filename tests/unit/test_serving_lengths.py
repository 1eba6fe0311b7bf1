"""Prompts whose lengths differ."""

from __future__ import annotations

from typing import Any

import pytest

from suite.case import Case, case_from
from suite.parse import SpecError
from suite.serving_lengths import pages_for, prompt_lengths

TINY = {"layers": 2, "hidden": 32, "heads": 2, "vocab": 64, "max_positions": 128}


def case_of(prompts: int, shortest: int, **cache: Any) -> Case:
    return case_from({
        "model": TINY, "workload": {"seq_len": 100, "micro_batch": prompts},
        "serving": {"new_tokens": 4, "shortest_prompt": shortest}, "cache": cache,
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


@pytest.mark.parametrize("page", [1, 2, 7, 16])
def test_half_a_page_less_half_a_token_is_wasted_of_a_sequence_on_average(page: int) -> None:
    lengths = range(1, 3 * page + 1)
    assert pages_for(lengths, page) * page - sum(lengths) == len(lengths) * (page - 1) / 2


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ({"page_tokens": 0}, r"cache\.page_tokens: must be at least 1 where it is given, got 0"),
        ({"page_tokens": 16, "allocation": "growing"}, r"cache\.page_tokens\(16\) with cache\.allocation\(growing\): "),
        ({"page_tokens": 16, "cache_tokens": 48}, r"cache\.cache_tokens\(48\): prompts of 16 pages in a pool of 12: "),
        ({"cache_tokens": 99}, r"workload\.seq_len\(100\) > cache\.cache_tokens\(99\)"),
    ],
)
def test_pages_that_cannot_be(cache: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        case_of(4, 10, **cache)  # prompts of 10, 40, 70 and 100 tokens


BLOCKS = {"sinks": 4, "window": 32, "memory_block": 8}


@pytest.mark.parametrize(
    ("model", "cache", "message"),
    [
        ({}, {"allocation": "growing"}, r"cache\.memory_block\(8\) with cache\.allocation\(growing\): "),
        ({}, {"cache_tokens": 64}, r"workload\.seq_len\(100\) > cache\.cache_tokens\(64\): "),
        ({"max_positions": 32}, {}, r"cache\.window\(32\) \+ 1 > model\.max_positions\(32\): "),
        ({"window": 31}, {}, r"cache\.window\(32\) > model\.window\(31\): "),
        ({"position": "learned", "max_positions": 103}, {}, r"= 104 is beyond max_positions\(103\)"),
    ],
)
def test_blocks_that_cannot_be(model: dict[str, Any], cache: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        case_from({
            "model": TINY | model, "workload": {"seq_len": 100, "micro_batch": 1},
            "serving": {"new_tokens": 4}, "cache": BLOCKS | cache,
        })  # fmt: skip


def test_a_pool_that_just_holds_the_prompts_is_enough() -> None:
    assert case_of(4, 10, page_tokens=16, cache_tokens=64).cache.page_tokens == 16
