"""Paged caches: answers, bytes, pages shared and given back, and what of them holds no token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memory.caches.model import cache_bytes
from memory.caches.paged import Occupancy, fragmentation
from suite.allocations import mark, record_allocations
from suite.caches.base import NOTHING, CacheFull
from suite.caches.build import build_cache
from suite.caches.core import next_logits, through
from suite.caches.paged import PagedCache
from suite.case import case_from
from suite.models.decoder_module import Decoder
from suite.record import Component, Quantity
from suite.serving_lengths import prompt_lengths
from tests.fake.test_caches import CPU, MODELS, answer, case_of, model_of

pytestmark = pytest.mark.fake

LATENT = {"kv_rank": 32, "rope_dim": 8, "nope_dim": 16, "v_dim": 12}
IDS = torch.randint(512, (3, 31), generator=torch.Generator().manual_seed(5))


def paged(**settings: int) -> PagedCache:
    cache = build_cache(case_of("gqa", serving={"shortest_prompt": 1}, **settings), CPU)
    assert isinstance(cache, PagedCache)
    return cache


def alone(model: Decoder, ids: torch.Tensor, last: int) -> torch.Tensor:
    with torch.no_grad():
        return model(ids[None])[0, -last:]


@pytest.mark.parametrize("page", [1, 5, 64])
@pytest.mark.parametrize("name", MODELS)
def test_answers_through_pages_are_those_without_a_cache_whatever_the_prompts_lengths(name: str, page: int) -> None:
    case = case_of(name, page_tokens=page)
    model, pads = model_of(case), torch.tensor([0, 5, 23])
    found = answer(case, model, IDS, pads)
    for row, pad in enumerate(pads):
        torch.testing.assert_close(found[row], alone(model, IDS[row, pad:], 8), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("page", "dtype", "size"),  # bytes an element; codes of a head of 16 share two fp16 numbers
    [(5, "fp32", 4), (16, "bf16", 2), (16, "fp8", 1), (32, "int8", 1.25), (5, "int4", 0.75)],
)
def test_the_allocator_gives_pages_and_their_table_the_bytes_of_the_formula(page: int, dtype: str, size: float) -> None:
    case = case_of("gqa", serving={"shortest_prompt": 1}, page_tokens=page, cache_dtype=dtype)
    with record_allocations() as trace:
        cache = build_cache(case, CPU)
        with through(model := model_of(case), cache), torch.no_grad():
            next_logits(model, cache, IDS, torch.arange(31).expand(3, -1))
        held = {tensor.untyped_storage().data_ptr() for tensors in cache.held().values() for tensor in tensors}
        mark("answered")
    found = [block.nbytes for block in trace.alive(trace.marks[0].at) if block.address in held]
    pages = 3 * {5: 7, 16: 2, 32: 1}[page]  # of 32 tokens each
    assert sum(found) == cache_bytes(case) == 3 * 2 * pages * page * 2 * 16 * size + pages * 8
    read = {5: 2 + 4 + 7, 16: 1 + 2 + 2, 32: 3}[page] * page  # of 8, 19 and 31 tokens
    assert cache_bytes(case, quantity=Quantity.CACHE_READ) == 3 * 2 * read * 2 * 16 * size


@pytest.mark.parametrize("page", [1, 7, 16])
@pytest.mark.parametrize("shortest", [1, 24])
def test_waste_by_formula_is_that_of_the_real_tables(page: int, shortest: int) -> None:
    case = case_of("gqa", serving={"shortest_prompt": shortest}, page_tokens=page)
    model, pads = model_of(case), 24 - torch.tensor(prompt_lengths(case))
    cache = build_cache(case, CPU)
    assert isinstance(cache, PagedCache)
    places = (torch.arange(31) - pads[:, None]).clamp(min=NOTHING)
    with through(model, cache), torch.no_grad():
        for part in (slice(10), slice(10, 24), *(slice(at, at + 1) for at in range(24, 31))):  # a prompt in two parts
            logits = next_logits(model, cache, IDS[:, part], places[:, part])
    torch.testing.assert_close(logits[0], alone(model, IDS[0, pads[0] :], 1)[0], atol=1e-5, rtol=0)
    taken = sum(len(pages) for pages in cache.pages.taken) * page
    pool = taken + len(cache.pages.free) * page
    assert fragmentation(case).paged == Occupancy(tokens=sum(cache.pages.lengths), taken=taken, pool=pool)
    assert fragmentation(case).contiguous == Occupancy(sum(cache.pages.lengths), 3 * 32, 3 * 32)


def test_a_short_sequence_leaves_its_pages_to_a_long_one_until_none_is_free() -> None:
    cache = paged(page_tokens=4, cache_tokens=16)  # 12 pages, of which the longest answer of 31 tokens takes 8
    cache.advance(torch.tensor([range(16), [NOTHING] * 14 + [0, 1], range(16)]))
    assert [len(pages) for pages in cache.pages.taken] == [4, 1, 4]
    cache.advance(torch.tensor([range(16, 28), [NOTHING] * 12, [NOTHING] * 12]))
    assert [len(pages) for pages in cache.pages.taken] == [7, 1, 4]
    table, lengths = cache.table.clone(), list(cache.pages.lengths)
    with pytest.raises(CacheFull, match="0 free pages of 4 tokens, and the sequences need 1 more"):
        cache.advance(torch.tensor([[NOTHING], [2], [16]]))
    assert torch.equal(cache.table, table)
    assert cache.pages.lengths == lengths
    cache.release(1)
    cache.advance(torch.tensor([[28], [NOTHING], [NOTHING]]))
    assert [len(pages) for pages in cache.pages.taken] == [8, 0, 4]
    with pytest.raises(CacheFull, match="room for 8 pages of 4 tokens of a sequence, and 33 tokens are there"):
        cache.advance(torch.tensor([range(29, 33), [NOTHING] * 4, [NOTHING] * 4]))


def test_beams_share_pages_and_copy_only_the_last_when_they_part() -> None:
    case = case_of("gqa", page_tokens=4)
    model, cache = model_of(case), build_cache(case, CPU)
    assert isinstance(cache, PagedCache)
    with through(model, cache), torch.no_grad():
        next_logits(model, cache, IDS[:, :10], torch.arange(10).expand(3, -1))
        cache.reorder(torch.tensor([1, 1, 0]))
        assert cache.pages.taken[0] == cache.pages.taken[1]
        assert len(cache.pages.free) == 24 - 6  # two texts of three pages: the third's are given back
        found = next_logits(model, cache, IDS[:, 20:21], torch.full((3, 1), 10))
    first, second = cache.pages.taken[:2]
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert len(cache.pages.free) == 24 - 7
    for row, source in enumerate([1, 1, 0]):
        text = torch.cat((IDS[source, :10], IDS[row, 20:21]))
        torch.testing.assert_close(found[row], alone(model, text, 1)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
def test_narrow_pages_answer_as_narrow_arrays_do(dtype: str) -> None:
    model, found = model_of(case_of("gqa")), []
    for settings in ({"page_tokens": 4}, {}):
        cache = build_cache(case_of("gqa", cache_dtype=dtype, **settings), CPU)
        with through(model, cache), torch.no_grad():
            next_logits(model, cache, IDS[:, :10], torch.arange(10).expand(3, -1))
            cache.reorder(torch.tensor([1, 1, 0]))
            found.append(next_logits(model, cache, IDS[:, 20:21], torch.full((3, 1), 10)))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)


def test_a_full_last_page_is_shared_without_a_copy() -> None:
    cache = paged(page_tokens=4)
    cache.advance(torch.arange(8).expand(3, -1))
    cache.reorder(torch.tensor([2, 2, 2]))
    cache.advance(torch.full((3, 1), 8))
    assert {tuple(pages[:2]) for pages in cache.pages.taken} == {tuple(cache.pages.taken[0][:2])}
    assert len(cache.pages.free) == 24 - 2 - 3
    cache.release(0)
    assert len(cache.pages.free) == 24 - 2 - 2  # its own page alone: others still read the shared ones


@pytest.mark.parametrize("part", [{"window": 7}, {"latent": LATENT}], ids=["window", "latent"])
def test_a_windows_and_a_latents_pages_answer_as_the_model_does(part: dict[str, Any]) -> None:
    case = case_from({
        "model": MODELS["gqa"] | {"kv_heads": 4} | part, "serving": {"new_tokens": 8}, "cache": {"page_tokens": 5},
        "workload": {"seq_len": 24, "micro_batch": 3, "precision": "fp32"},
    })  # fmt: skip
    model, pads = model_of(case), torch.tensor([0, 5, 23])
    found = answer(case, model, IDS, pads)
    for row, pad in enumerate(pads):
        torch.testing.assert_close(found[row], alone(model, IDS[row, pad:], 8), atol=1e-5, rtol=0)


def test_padding_reads_something_finite() -> None:
    case = case_of("gqa", page_tokens=4, cache_tokens=24)
    model, cache = model_of(case), build_cache(case, CPU)
    with through(model, cache), torch.no_grad():
        places = torch.stack((torch.arange(24), torch.full((24,), NOTHING), torch.arange(24)))
        assert bool(next_logits(model, cache, IDS[:, :24], places).isfinite().all())
        assert bool(next_logits(model, cache, IDS[:, :1], torch.full((3, 1), NOTHING)).isfinite().all())
    assert cache.held()[Component.TABLES][0][1].tolist() == [0] * 8
