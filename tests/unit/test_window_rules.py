"""Caches that forget: what they take by hand, and what of them is refused."""

from __future__ import annotations

from typing import Any

import pytest

from memory.caches.model import cache_bytes
from suite.case import Case, case_from
from suite.parse import SpecError
from suite.record import Quantity
from suite.units import MIB

pytestmark = pytest.mark.unit

TINY = {"layers": 2, "hidden": 32, "heads": 2, "vocab": 64, "max_positions": 64}
LATENT = {"kv_rank": 8, "rope_dim": 4, "nope_dim": 8, "v_dim": 8}


def case_of(model: Any, seq_len: int = 32, new_tokens: int = 16, **cache: Any) -> Case:
    return case_from({
        "model": model, "workload": {"seq_len": seq_len, "micro_batch": 2, "precision": "bf16-mixed"},
        "serving": {"new_tokens": new_tokens}, "cache": cache,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("seq_len", "cache", "stored", "read"),
    [
        # 32 layers of a key and a value of 8 heads of 128, in 16 bits: 128 KiB a token, of 4096 and 2 sequences; places
        (31_744, {}, 2 * 4096 * (2**17 + 8), 1024 * MIB),
        (2_048, {}, 2 * 3072 * (2**17 + 8), 2 * 3071 * 2**17),
        (31_744, {"window": 1020, "sinks": 4}, 2 * 1024 * (2**17 + 8), 256 * MIB),
        (31_744, {"window": 512, "cache_dtype": "fp8"}, 2 * 512 * (2**16 + 8), 64 * MIB),
        # a code a number, and for each key and value of a head a scale and an offset in fp16
        (31_744, {"window": 512, "cache_dtype": "int8"}, 2 * 512 * (2**16 + 2048 + 8), 2 * 512 * (2**16 + 2048)),
        # pages keep the whole text, whatever the model sees of it: 2 tables of 32 pages of 1024 tokens
        (31_744, {"page_tokens": 1024}, 2 * (32_768 * 2**17 + 32 * 8), 2 * 32_768 * 2**17),
    ],
)
def test_mistrals_cache_by_hand(seq_len: int, cache: dict[str, Any], stored: int, read: int) -> None:
    case = case_of("mistral-7b", seq_len, 1024, **cache)
    assert cache_bytes(case) == stored
    assert cache_bytes(case, quantity=Quantity.CACHE_READ) == read


@pytest.mark.parametrize(
    ("model", "cache", "message"),
    [
        ({}, {"window": 0}, r"^cache\.window: must be at least 1 where it is given, got 0$"),
        ({}, {"window": 8, "sinks": 0}, r"^cache\.sinks: must be at least 1 where it is given, got 0$"),
        ({}, {"sinks": 4}, r"^cache\.sinks: 4 without window; give one$"),
        ({"window": 0}, {}, r"^model\.window: must be at least 1 where it is given, got 0$"),
        (
            {"max_positions": 40},
            {"window": 38, "sinks": 3},
            r"^cache\.sinks\(3\) \+ cache\.window\(38\) > model\.max_positions\(40\): [^\n]*; take a smaller window$",
        ),
        (
            {"max_positions": 40},
            {"window": 8},
            r"^serving\.new_tokens: seq_len\(32\) \+ 16 = 48 is beyond max_positions\(40\) of custom: [^\n]*$",
        ),
        (
            {"max_positions": 40, "position": "learned"},
            {"window": 8, "sinks": 3},
            r"^serving\.new_tokens: seq_len\(32\) \+ 16 = 48 is beyond max_positions\(40\) of custom: [^\n]*$",
        ),
        (
            {"window": 16},
            {"window": 14, "sinks": 3},
            r"^cache\.sinks\(3\) \+ cache\.window\(14\) > model\.window\(16\): [^\n]*$",
        ),
        ({"latent": LATENT}, {"window": 8, "sinks": 3}, r"^model\.latent with cache\.window\(8\): [^\n]*$"),
        (
            {},
            {"window": 8, "allocation": "growing"},
            r"^cache\.allocation\(growing\) with cache\.window\(8\), model\.window\(None\): [^\n]*static$",
        ),
        (
            {"window": 8},
            {"allocation": "growing"},
            r"^cache\.allocation\(growing\) with cache\.window\(None\), model\.window\(8\): [^\n]*static$",
        ),
        ({}, {"window": 30, "cache_tokens": 29}, r"^workload\.seq_len\(32\) > cache\.cache_tokens\(29\): [^\n]*$"),
        ({}, {"window": 8, "page_tokens": 4}, r"^cache\.page_tokens\(4\) with cache\.window\(8\): [^\n]*$"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(model: dict[str, Any], cache: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        case_of(TINY | model, **cache)


@pytest.mark.parametrize(
    ("model", "cache"),
    [
        ({"max_positions": 40}, {"window": 37, "sinks": 3}),
        ({"window": 16}, {"window": 13, "sinks": 3}),
        ({}, {"window": 60, "sinks": 8}),  # more than there are positions, but not more than the text has
        ({}, {"window": 29, "cache_tokens": 29}),
    ],
)
def test_what_just_fits_is_not(model: dict[str, Any], cache: dict[str, Any]) -> None:
    assert case_of(TINY | model, **cache).serves


def test_training_beyond_the_window_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^model\.window\(16\) < workload\.seq_len\(32\): [^\n]*$"):
        case_from({"model": TINY | {"window": 16}, "workload": {"seq_len": 32}})
