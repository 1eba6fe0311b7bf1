"""Block memory: answers held to attention without a cache under the same rule of positions and blocks, and bytes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memory.caches.model import cache_bytes, cache_terms
from parallelism.serving.reads import Reads
from suite.allocations import mark, record_allocations
from suite.caches.base import NOTHING, CacheFull
from suite.caches.block_core import BlockCore
from suite.caches.block_memory import BlockMemory
from suite.caches.build import build_cache
from suite.caches.core import next_logits, through
from suite.models.blocks import Attention, rotate
from suite.models.decoder_module import Decoder
from suite.record import Component, Quantity
from tests.fake.test_caches import CPU, MODELS, case_of, model_of

pytestmark = pytest.mark.fake

IDS = torch.randint(512, (3, 31), generator=torch.Generator().manual_seed(5))
BLOCKS = {"sinks": 2, "window": 5, "memory_block": 3, "representatives": 2}
PASSES = {"whole": [24], "parts": [7, 6, 11]}


class Reference(nn.Module):
    """Attention of one whole text [1, s, ...], its passes given: near tokens at their distances, far ones at `window`,
    and of the blocks that a pass finds only the best."""

    def __init__(self, passes: list[tuple[int, int]], fetched: int) -> None:
        super().__init__()
        self.passes, self.fetched = passes, fetched

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        sinks, window, block = BLOCKS["sinks"], BLOCKS["window"], BLOCKS["memory_block"]
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2)[0] for x in (k, v))
        near_q, near_k, far_q = q[0], k, q[0]
        if rope is not None:
            near_q, near_k = (rotate(x[None], *rope)[0] for x in (q[0], k))
            far_q = rotate(q, rope[0][window], rope[1][window])[0]
        near, far = (torch.einsum("iad,jad->aij", *pair) / 4 for pair in ((near_q, near_k), (far_q, k)))  # head_dim 16
        apart = torch.arange(len(k))[:, None] - torch.arange(len(k))
        may = apart >= 0
        worth = (near * ((apart >= 1) & (apart < window))).sum(dim=(0, 1))
        for begin, end in self.passes:
            texts = [torch.arange(at, at + block) for at in range(sinks, begin - window - block + 2, block)]
            best = [text[worth[text].topk(BLOCKS["representatives"]).indices] for text in texts]
            found = torch.tensor([float(far[:, begin:end, tokens].sum()) for tokens in best])
            for left in found.argsort(descending=True)[self.fetched :]:
                may[begin:end, texts[left]] = False
        scores = torch.where(apart < window, near, far).masked_fill(~may, float("-inf"))
        return torch.einsum("aij,jad->iad", scores.softmax(dim=-1), v)[None]


def reference(model: Decoder, ids: Tensor, passes: list[tuple[int, int]], fetched: int) -> Tensor:
    """Logits of the last eight tokens."""
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    own = [attention.core for attention in attentions]
    for attention in attentions:
        attention.core = Reference(passes, fetched)
    with torch.no_grad():
        found = model(ids[None])[0, -8:]
    for attention, core in zip(attentions, own, strict=True):
        attention.core = core
    return found


def answer(model: Decoder, cache: BlockMemory, pads: Tensor, passes: list[int]) -> Tensor:
    """Logits of the last eight tokens, the prompt read in so many tokens at a time and the others one by one."""
    places, found, at = (torch.arange(31) - pads[:, None]).clamp(min=NOTHING), [], 0
    with through(model, cache), torch.no_grad():
        for tokens in [*passes, *([1] * 7)]:
            found.append(next_logits(model, cache, IDS[:, at : at + tokens], places[:, at : at + tokens]))
            at += tokens
    return torch.stack(found[-8:], dim=1)


def memory(name: str = "gqa", **cache: Any) -> BlockMemory:
    built = build_cache(case_of(name, **(BLOCKS | cache)), CPU)
    assert isinstance(built, BlockMemory)
    return built


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("fetched", [2, 16])
@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_attention_without_a_cache_under_the_same_rule(
    name: str, fetched: int, passes: str
) -> None:
    model, pads = model_of(case_of(name)), torch.tensor([0, 5, 20])
    cache = memory(name, fetched_blocks=fetched)
    found = answer(model, cache, pads, PASSES[passes])
    starts = [0, *torch.tensor(PASSES[passes]).cumsum(0).tolist(), *range(25, 32)]
    for row, pad in enumerate(pads.tolist()):
        own = [(max(0, a - pad), b - pad) for a, b in pairwise(starts) if b > pad]
        expected = reference(model, IDS[row, pad:], own, fetched)
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=0)
    assert cache.size.blocks == 8  # of 32 tokens: 2 sinks, 4 behind the next query, and 26 // 3
    assert cache.plan.blocks.tolist() == [8, 6, 1]  # before the last token of 31, 26 and 11


@pytest.mark.parametrize("name", MODELS)
def test_a_text_within_the_window_is_read_as_by_full_attention(name: str) -> None:
    model, cache = model_of(case_of(name)), memory(name, window=32)
    found = answer(model, cache, torch.tensor([0, 0, 0]), [24])
    with torch.no_grad():
        torch.testing.assert_close(found, model(IDS)[:, -8:], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("fetched", "window", "blocks", "recent", "dtype", "size"),
    [(2, 5, 8, 6, "fp32", 4), (16, 5, 8, 6, "bf16", 2), (2, 40, 0, 30, "fp32", 4)],
)
def test_the_allocator_gives_device_and_host_the_bytes_of_the_formula(
    fetched: int, window: int, blocks: int, recent: int, dtype: str, size: int
) -> None:
    case = case_of("gqa", **BLOCKS | {"fetched_blocks": fetched, "window": window, "cache_dtype": dtype})
    model = model_of(case)
    with record_allocations() as trace:
        cache = build_cache(case, CPU)
        assert isinstance(cache, BlockMemory)
        answer(model, cache, torch.tensor([0, 0, 0]), [24])
        cache.reorder(torch.tensor([1, 1, 0]))
        held = {tensor.untyped_storage().data_ptr() for tensors in cache.held().values() for tensor in tensors}
        mark("answered")
    found = [block.nbytes for block in trace.alive(trace.marks[0].at) if block.address in held]
    token, back = 3 * 3 * 2 * 16 * size, min(fetched, blocks) * 3  # layers, sequences, heads, width; tokens
    expected = {
        Component.KEYS: (2 + recent + back + blocks * 2) * token,
        Component.VALUES: (2 + recent + back) * token,
        Component.TABLES: 3 * recent * (8 + 3 * 4),
        Component.HOST: 2 * blocks * 3 * token,
    }
    stored = dict.fromkeys(expected, 0)
    for term in cache_terms(case):
        stored[term.component] += term.nbytes * (term.quantity is Quantity.CACHE)
    assert stored == expected
    assert sum(found) == cache_bytes(case) == sum(expected.values())
    read = expected[Component.KEYS] + expected[Component.VALUES] + 2 * back * token
    assert cache_bytes(case, quantity=Quantity.CACHE_READ) == read


def test_codes_of_blocks_have_scales_on_the_device_and_on_the_host() -> None:
    case, reads = case_of("gqa", **BLOCKS, fetched_blocks=2, cache_dtype="int4", quant_group=8), Reads()
    cache, model = build_cache(case, CPU, reads.around), model_of(case)
    assert isinstance(cache, BlockMemory)
    assert bool(answer(model, cache, torch.tensor([0, 0, 0]), [24]).isfinite().all())
    heads = 3 * 3 * 2  # layers, sequences, heads; of a head 8 bytes of codes, and 8 of scales and offsets of two groups
    expected = {
        Component.KEYS: (2 + 6 + 6 + 16) * heads * 8, Component.VALUES: (2 + 6 + 6) * heads * 8,
        Component.SCALES: (2 * (2 + 6 + 6) + 16) * heads * 8, Component.TABLES: 3 * 6 * (8 + 3 * 4),
        Component.HOST: 2 * 24 * heads * 16,
    }  # fmt: skip
    assert {name: sum(x.nbytes for x in held) for name, held in cache.held().items()} == expected
    assert cache_bytes(case) == sum(expected.values())
    reads.forget()
    with through(model, cache), torch.no_grad():
        next_logits(model, cache, IDS[:, :1], torch.full((3, 1), 31))
    assert reads.nbytes(cache.held()) == {
        name: nbytes for name, nbytes in expected.items() if name is not Component.TABLES
    } | {Component.HOST: 2 * 6 * heads * 16}
    assert cache_bytes(case, quantity=Quantity.CACHE_READ) == sum(reads.nbytes(cache.held()).values())


def blocks_of(cache: BlockMemory, keys: Tensor, queries: Tensor) -> None:
    """Read one token after another, [s, 16] each, into the first layer, the same for every head of every sequence."""
    core = BlockCore(cache.layers[0], cache)
    for at in range(len(keys)):
        cache.advance(torch.full((3, 1), at))
        q, k = queries[at].expand(3, 1, 4, 16), keys[at].expand(3, 1, 4, 16)
        assert bool(core(q, k, k, None).isfinite().all())


def test_the_fetched_blocks_are_those_whose_keys_the_query_asks_for() -> None:
    cache, axis = memory("gpt", fetched_blocks=2), torch.eye(16)
    keys = torch.stack([axis[0] * 9, axis[0] * 9, *(axis[1 + at // 3] for at in range(22))])  # sinks, then by blocks
    blocks_of(cache, keys, torch.zeros(24, 16))
    cache.advance(torch.full((3, 1), 24))
    assert cache.plan.blocks.tolist() == [6, 6, 6]
    query = (axis[3] + axis[6] * 0.5 + axis[0]).expand(3, 4, 16)
    best, there = cache.layers[0].chosen(query)
    assert (best.tolist(), bool(there.all())) == ([[2, 5]] * 3, True)
    (found, _), _ = cache.layers[0].fetch(query)
    assert torch.equal(found[1, :, 0], torch.stack([axis[3]] * 3 + [axis[6]] * 3))


def test_those_tokens_stand_for_a_block_that_later_queries_score_highest() -> None:
    cache, axis = memory("gpt"), torch.eye(16)
    keys = torch.zeros(24, 16)
    keys[2:5] = axis[[1, 2, 3]]  # block 0: places 2, 3 and 4
    queries = torch.zeros(24, 16)
    queries[5], queries[6] = axis[1], axis[3] * 0.5  # within the window of all three
    queries[2:5], queries[9:] = axis[2], axis[2] * 50  # too early for place 3 but at 4, and too late
    blocks_of(cache, keys, queries)
    found = cache.layers[0].representatives.read(slice(None))[0].view(3, 8, 2, 4, 16)[0, 0, :, 0]
    assert sorted(found.argmax(dim=-1).tolist()) == [1, 2]
    queries[3:5] = 0
    cache = memory("gpt")
    blocks_of(cache, keys, queries)
    found = cache.layers[0].representatives.read(slice(None))[0].view(3, 8, 2, 4, 16)[0, 0, :, 0]
    assert sorted(found.argmax(dim=-1).tolist()) == [1, 3]


def test_beams_go_on_from_each_others_blocks() -> None:
    model, cache, pads = model_of(case_of("gqa")), memory(fetched_blocks=1), torch.tensor([0, 4, 2])
    rows, places = torch.tensor([2, 2, 0]), torch.arange(31) - pads[:, None]
    with through(model, cache), torch.no_grad():
        next_logits(model, cache, IDS[:, :17], places[:, :17].clamp(min=NOTHING))
        cache.reorder(rows)
        for at in range(17, 31):
            found = next_logits(model, cache, IDS[:, at : at + 1], places[rows, at : at + 1])
    for row, source in enumerate(rows.tolist()):
        pad = int(pads[source])
        text, ends = torch.cat((IDS[source, pad:17], IDS[row, 17:])), range(17 - pad, 32 - pad)
        expected = reference(model, text, list(pairwise([0, *ends])), fetched=1)[-1]
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=0)


def test_a_text_may_be_longer_than_the_models_positions() -> None:
    case = case_of("gqa", new_tokens=300, **BLOCKS, fetched_blocks=2)
    model, cache = model_of(case), build_cache(case, CPU)
    ids = torch.randint(512, (3, 301))
    with through(model, cache), torch.no_grad():
        for at in range(0, 300, 60):
            next_logits(model, cache, ids[:, at : at + 60], torch.arange(at, at + 60).expand(3, -1))
        assert bool(next_logits(model, cache, ids[:, 300:], torch.full((3, 1), 300)).isfinite().all())


def test_a_full_block_memory_says_so_and_stays_as_it_was() -> None:
    cache = memory(cache_tokens=24)
    cache.advance(torch.arange(24).expand(3, -1))
    with pytest.raises(CacheFull, match="room for 24 tokens of a sequence, and 25 are there"):
        cache.advance(torch.full((3, 1), 24))
    assert cache.lengths == [24] * 3
