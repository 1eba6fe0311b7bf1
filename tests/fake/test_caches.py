"""Caches: bytes by formula held to the allocator, and answers held to the same model without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memory.caches.model import cache_bytes, cache_terms
from suite.caches.base import NOTHING, CacheFull
from suite.caches.build import build_cache
from suite.caches.core import next_logits, through
from suite.case import Case, case_from
from suite.models.decoder_module import Decoder
from suite.record import Quantity
from tests.fake.measured import allocated_for_cache

pytestmark = pytest.mark.fake

SMALL = {"layers": 3, "hidden": 64, "heads": 4, "vocab": 512, "max_positions": 256, "ffn": 96}
MODELS = {
    "gpt": SMALL | {"norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True, "tied": True},
    "gqa": SMALL | {"kv_heads": 2},
    "mqa": SMALL | {"kv_heads": 1, "rope_fraction": 0.5},
}
CPU = torch.device("cpu")


def case_of(model: str, new_tokens: int = 8, serving: dict[str, Any] | None = None, **cache: Any) -> Case:
    return case_from({
        "model": MODELS[model], "workload": {"seq_len": 24, "micro_batch": 3, "precision": "fp32"},
        "serving": {"new_tokens": new_tokens} | (serving or {}), "cache": cache,
    })  # fmt: skip


def answer(case: Case, model: Decoder, ids: torch.Tensor, pads: torch.Tensor) -> torch.Tensor:
    """Logits of every token from the prompt's last on, [b, n, V], each read through the cache."""
    prompt, cache = case.workload.seq_len, build_cache(case, CPU)
    places = torch.arange(ids.shape[1]) - pads[:, None]
    places = torch.where(places < 0, NOTHING, places)
    with through(model, cache), torch.no_grad():
        found = [next_logits(model, cache, ids[:, :prompt], places[:, :prompt])]
        for at in range(prompt, ids.shape[1]):
            found.append(next_logits(model, cache, ids[:, at : at + 1], places[:, at : at + 1]))
    return torch.stack(found, dim=1)


def model_of(case: Case) -> Decoder:
    torch.manual_seed(3)
    model = Decoder(case.model)
    model.reset_parameters()
    return model.eval()


@pytest.mark.parametrize("allocation", ["static", "growing"])
@pytest.mark.parametrize("name", MODELS)
def test_answers_through_a_cache_are_those_without_one_whatever_the_prompts_lengths(name: str, allocation: str) -> None:
    case = case_of(name, allocation=allocation)
    model, ids, pads = model_of(case), torch.randint(512, (3, 31)), torch.tensor([0, 5, 23])
    found = answer(case, model, ids, pads)
    for row, pad in enumerate(pads):
        with torch.no_grad():
            alone = model(ids[row : row + 1, pad:])[0, -8:]
        torch.testing.assert_close(found[row], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("allocation", ["static", "growing"])
@pytest.mark.parametrize("name", MODELS)
def test_the_allocator_gives_a_cache_the_bytes_of_the_formula(name: str, allocation: str) -> None:
    case = case_of(name, allocation=allocation)
    model, ids = model_of(case), torch.randint(512, (3, 31))
    assert allocated_for_cache(case, model, ids) == cache_bytes(case)
    read = sum(term.nbytes for term in cache_terms(case) if term.quantity is Quantity.CACHE_READ)
    assert read == 3 * 2 * 31 * 3 * case.model.kv_heads * 16 * 4  # layers, lanes, tokens, sequences, heads, width, fp32


def test_a_cache_that_is_full_says_so_and_stays_as_it_was() -> None:
    case = case_of("gqa", cache_tokens=24)
    model, cache, ids = model_of(case), build_cache(case, CPU), torch.randint(512, (3, 24))
    with through(model, cache), torch.no_grad():
        next_logits(model, cache, ids, torch.arange(24).expand(3, -1))
        with pytest.raises(CacheFull, match="room for 24 tokens of a sequence, and 25 are there"):
            next_logits(model, cache, ids[:, :1], torch.full((3, 1), 24))
    assert cache.places.max() == 23  # type: ignore[attr-defined]
