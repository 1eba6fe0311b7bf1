"""Windows and attention sinks: answers held to masked attention without a cache, bytes by formula to the allocator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from memory.caches.model import cache_bytes, cache_terms
from parallelism.serving import serve_pass
from parallelism.serving.losses import Losses
from suite.allocations import mark, record_allocations
from suite.caches.base import NOTHING, CacheFull
from suite.caches.build import build_cache
from suite.caches.core import next_logits, through
from suite.caches.rolling import RollingCache
from suite.case import Case, case_from
from suite.data import Windows
from suite.models.decoder_module import Decoder
from suite.ranklog import RankWriter, read_rank
from suite.record import Component, Quantity

pytestmark = pytest.mark.fake

SMALL = {"layers": 2, "hidden": 32, "heads": 4, "vocab": 128, "max_positions": 64, "ffn": 48}
MODELS: dict[str, dict[str, Any]] = {
    "gpt": SMALL | {"norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True, "tied": True},
    "gqa": SMALL | {"kv_heads": 2},
    "mqa": SMALL | {"kv_heads": 1, "rope_fraction": 0.5},
}
CPU = torch.device("cpu")
PROMPT, NEW = 24, 40
PADS = torch.tensor([0, 5, 21])


def case_of(model: str | dict[str, Any], seq_len: int = PROMPT, new_tokens: int = NEW, **cache: Any) -> Case:
    return case_from({
        "model": MODELS[model] if isinstance(model, str) else model,
        "workload": {"seq_len": seq_len, "micro_batch": 3, "precision": "fp32"},
        "serving": {"new_tokens": new_tokens}, "cache": cache,
    })  # fmt: skip


def model_of(case: Case) -> Decoder:
    """Weights far larger than usual, so that attention is anything but even."""
    torch.manual_seed(3)
    model = Decoder(case.model)
    model.reset_parameters()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def places_of(length: int, pads: Tensor) -> Tensor:
    places = torch.arange(length) - pads[:, None]
    return torch.where(places < 0, NOTHING, places)


@torch.no_grad()
def answer(case: Case, model: Decoder, prompts: Tensor, pads: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Prompts read in chunks, then the likeliest token time after time: the text [b, s + n], logits [b, n, V]."""
    cache, text, found = build_cache(case, CPU), prompts, []
    places = places_of(case.workload.seq_len + case.serving.new_tokens, pads)  # type: ignore[operator]
    starts = [*range(0, prompts.shape[1], chunk), *range(prompts.shape[1], places.shape[1])]
    with through(model, cache):
        for start, end in zip(starts, [*starts[1:], places.shape[1]], strict=True):
            logits = next_logits(model, cache, text[:, start:end], places[:, start:end])
            if end >= prompts.shape[1]:
                found.append(logits)
                text = torch.cat((text, logits.argmax(-1, keepdim=True)), dim=1)
    return text, torch.stack(found, dim=1)


def masked(model: Decoder, text: Tensor, window: int) -> Tensor:
    """The model's own forward pass within a window, without a cache."""
    windowed = Decoder(replace(model.spec, window=window))
    windowed.load_state_dict(model.state_dict())
    return windowed.eval()(text)


def counted_anew(model: Decoder, text: Tensor, window: int, sinks: int) -> Tensor:
    """StreamingLLM without a cache, a query at a time: what it sees of `text` [s] is listed, places are counted in the
    list, queries and keys are turned by them as complex numbers; logits [s, V]. Learned positions stay the text's."""
    spec = model.spec
    half, group = spec.rotary_dim // 2, spec.heads // spec.kv_heads
    rates = torch.tensor([spec.rope_theta ** (-i / half) for i in range(half)], dtype=torch.float64)

    def turn(x: Tensor, places: Tensor) -> Tensor:
        if model.positions is not None:
            return x
        turns = torch.polar(torch.ones(1, dtype=torch.float64), places.double()[:, None, None] * rates)
        pairs = torch.complex(x[..., :half].double(), x[..., half : 2 * half].double()) * turns
        return torch.cat((pairs.real, pairs.imag, x[..., 2 * half :].double()), dim=-1).float()

    assert model.embedding is not None
    assert model.norm is not None
    assert model.head is not None
    x = model.embedding(text)
    if model.positions is not None:
        x = x + model.positions(torch.arange(len(text)))
    for block in model.blocks.values():
        attention, normed = block.attention, block.attention_norm(x)
        q, k, v = (getattr(attention, name)(normed).unflatten(-1, (-1, spec.head_dim)) for name in ("wq", "wk", "wv"))
        rows = []
        for place in range(len(text)):
            seen = [other for other in range(place + 1) if other < sinks or other > place - window]
            keys = turn(k[seen], torch.arange(len(seen))).repeat_interleave(group, dim=1)
            query = turn(q[place : place + 1], torch.tensor([len(seen) - 1]))[0]
            weights = (torch.einsum("ad,tad->at", query, keys) / spec.head_dim**0.5).softmax(-1)
            rows.append(torch.einsum("at,tad->ad", weights, v[seen].repeat_interleave(group, dim=1)).flatten())
        x = x + attention.wo(torch.stack(rows))
        x = x + block.mlp(block.mlp_norm(x))
    return model.head(model.norm(x))


@pytest.mark.parametrize("chunk", [PROMPT, 9, 7])
@pytest.mark.parametrize("name", MODELS)
def test_a_rolling_buffer_answers_as_masked_attention_does_without_one(name: str, chunk: int) -> None:
    """The texts go around the buffer of 9 up to seven times."""
    case = case_of(name, window=9)
    model = model_of(case)
    text, found = answer(case, model, torch.randint(128, (3, PROMPT)), PADS, chunk)
    for row, pad in enumerate(PADS):
        with torch.no_grad():
            alone = masked(model, text[row : row + 1, pad:-1], 9)[0, -NEW - 1 :]
        torch.testing.assert_close(found[row], alone[-len(found[row]) :], atol=1e-5, rtol=0)
        assert torch.equal(text[row, PROMPT:], alone[-len(found[row]) :].argmax(-1))


@pytest.mark.parametrize("sizes", [{}, {"window": 12}, {"window": 5}])
def test_the_smaller_of_the_models_window_and_the_caches_decides(sizes: dict[str, int]) -> None:
    """The prompts are as long as the model's window: they fill the buffer without an overwrite."""
    case = case_of(MODELS["gqa"] | {"window": 9}, seq_len=9, **sizes)
    model = model_of(case)
    text, found = answer(case, model, torch.randint(128, (3, 9)), torch.zeros(3, dtype=torch.long), 9)
    with torch.no_grad():
        alone = masked(model, text[:, :-1], min(9, sizes.get("window", 9)))[:, 8:]
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [PROMPT, 12, 7])
@pytest.mark.parametrize("name", MODELS)
def test_sinks_answer_as_attention_that_counts_places_anew_for_every_query(name: str, chunk: int) -> None:
    """With rotary positions, of a model whose positions the sinks and the window fill: a third of the text."""
    positions = 64 if name == "gpt" else 12
    case = case_of(MODELS[name] | {"max_positions": positions}, window=9, sinks=3)
    model = model_of(case)
    text, found = answer(case, model, torch.randint(128, (3, PROMPT)), PADS, chunk)
    for row, pad in enumerate(PADS):
        with torch.no_grad():
            alone = counted_anew(model, text[row, pad:-1], 9, 3)[PROMPT - 1 - pad :]
        torch.testing.assert_close(found[row], alone, atol=1e-5, rtol=0)
        assert torch.equal(text[row, PROMPT:], alone.argmax(-1))


@pytest.mark.parametrize("kept", [{"window": 64}, {"window": 60, "sinks": 4}])
def test_what_keeps_the_whole_text_is_a_full_cache_in_logits_and_bytes(kept: dict[str, int]) -> None:
    _hold_to_a_full_cache(kept)


def test_a_window_of_codes_over_the_whole_text_is_a_full_cache_of_codes() -> None:
    """Keys are rotated before they are rounded in both; sinks round keys that are not."""
    _hold_to_a_full_cache({"window": 64, "cache_dtype": "int8"})


def _hold_to_a_full_cache(kept: dict[str, Any]) -> None:
    full, case = case_of("gqa", cache_dtype=kept.get("cache_dtype", "auto")), case_of("gqa", **kept)
    model, prompts = model_of(case), torch.randint(128, (3, PROMPT))
    for ours, theirs in zip(
        answer(case, model, prompts, PADS, PROMPT), answer(full, model, prompts, PADS, PROMPT), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for quantity in (Quantity.CACHE, Quantity.CACHE_READ):
        assert cache_bytes(case, quantity=quantity) == cache_bytes(full, quantity=quantity)


@pytest.mark.parametrize(("name", "dtype"), [("gqa", "fp32"), ("mqa", "bf16"), ("gqa", "fp8"), ("mqa", "int4")])
@pytest.mark.parametrize("kept", [{"window": 9}, {"window": 9, "sinks": 3}, {"window": 50}])
def test_the_allocator_gives_a_window_the_bytes_of_the_formula(name: str, kept: dict[str, int], dtype: str) -> None:
    case = case_of(name, seq_len=24, new_tokens=8, cache_dtype=dtype, **kept)
    model, ids = model_of(case), torch.randint(128, (3, 31))
    with record_allocations() as trace:
        cache = build_cache(case, CPU)
        with through(model, cache), torch.no_grad():
            for start, end in ((0, 24), (24, 30), (30, 31)):
                next_logits(model, cache, ids[:, start:end], places_of(31, PADS)[:, start:end])
        held = {tensor.untyped_storage().data_ptr() for tensors in cache.held().values() for tensor in tensors}
        mark("answered")
    found = [block.nbytes for block in trace.alive(trace.marks[0].at) if block.address in held]
    assert sum(found) == cache_bytes(case)
    size, entries = {"fp32": 4, "bf16": 2, "fp8": 1, "int4": 0.5}[dtype], min(31, sum(kept.values()))
    read = [term for term in cache_terms(case) if term.quantity is Quantity.CACHE_READ]
    by_lane = {term.component: term.nbytes for term in read if term.component is not Component.SCALES}
    # layers, entries, sequences, heads, width, bytes
    hand = 2 * entries * 3 * case.model.kv_heads * 8 * size
    assert by_lane == {Component.KEYS: hand, Component.VALUES: hand}
    assert isinstance(cache, RollingCache)
    assert cache.layers[0].stores[0].read(slice(cache.latest.after)).shape[:2] == (3, entries)


def test_a_buffer_smaller_than_its_window_fills_up_and_says_so() -> None:
    case = case_of("gqa", window=30, cache_tokens=26)
    model, cache, ids = model_of(case), build_cache(case, CPU), torch.randint(128, (3, 27))
    places = places_of(27, torch.zeros(3, dtype=torch.long))
    with through(model, cache), torch.no_grad():
        next_logits(model, cache, ids[:, :26], places[:, :26])
        with pytest.raises(CacheFull, match="room for 26 tokens of a sequence, and 27 are there"):
            next_logits(model, cache, ids[:, 26:], places[:, 26:])
    assert isinstance(cache, RollingCache)
    assert torch.equal(cache.places, places[:, :26])


@pytest.mark.parametrize("kept", [{"window": 9}, {"window": 9, "sinks": 3}])
def test_sequences_change_places_whole(kept: dict[str, int]) -> None:
    case = case_of("gqa", **kept)
    model, rows = model_of(case), torch.tensor([2, 0, 2])
    ids, places = torch.randint(128, (3, 31)), places_of(31, PADS)

    def answered(reorders: bool) -> Tensor:
        cache = build_cache(case, CPU)
        with through(model, cache), torch.no_grad():
            next_logits(model, cache, ids[:, :30], places[:, :30])
            if not reorders:
                return next_logits(model, cache, ids[:, 30:], places[:, 30:])[rows]
            cache.reorder(rows)
            return next_logits(model, cache, ids[rows, 30:], places[rows, 30:])

    torch.testing.assert_close(answered(True), answered(False), atol=1e-6, rtol=0)


def test_no_row_reads_nothing_or_what_was_never_written() -> None:
    """A sequence that has ended may be given padding: nobody reads its logits, but a nan would tell. With deterministic
    algorithms torch fills new memory with nan, and rows shorter than the longest have entries that nobody wrote."""
    torch.use_deterministic_algorithms(True)
    try:
        _read_padding()
    finally:
        torch.use_deterministic_algorithms(False)


def _read_padding() -> None:
    case = case_of("gqa", window=9, sinks=3)
    model, cache = model_of(case), build_cache(case, CPU)
    ids, places = torch.randint(128, (3, 31)), places_of(31, PADS)
    places[1, 30] = NOTHING
    with through(model, cache), torch.no_grad():
        next_logits(model, cache, ids[:, :30], places[:, :30])
        assert next_logits(model, cache, ids[:, 30:], places[:, 30:]).isfinite().all()


@pytest.mark.parametrize(
    ("model", "cache", "differences"),
    [
        ({}, {"window": 5}, 1),
        ({"window": 7}, {}, 1),
        ({"window": 7}, {"page_tokens": 4}, 1),
        ({}, {"window": 5, "sinks": 2}, 0),
    ],
    ids=str,
)
def test_served_windows_weigh_what_formulas_say_and_are_held_to_masked_attention(
    model: dict[str, int], cache: dict[str, int], differences: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_pass, "PREFILLS", 0)
    case = case_from({
        "model": MODELS["gqa"] | model, "workload": {"seq_len": 12, "micro_batch": 3, "precision": "fp32"},
        "serving": {"new_tokens": 9, "shortest_prompt": 3, "prefill_tokens": 5}, "cache": cache,
    })  # fmt: skip
    tokens = torch.randint(128, (200,), generator=torch.Generator().manual_seed(2)).int().numpy()
    windows, writer = Windows(tokens, 12, 12, 0), RankWriter(tmp_path, 0)
    serve_pass.ServePass(case, 0, CPU, None, windows, writer, Losses()).run()
    samples = read_rank(tmp_path, 0).samples
    for quantity in (Quantity.CACHE, Quantity.CACHE_READ):
        found = sum(sample.value for sample in samples if sample.quantity is quantity)
        assert found == cache_bytes(case, quantity=quantity)
    assert [sample.value for sample in samples if sample.quantity is Quantity.TOKENS_DIFFER] == [0] * differences
    apart = [sample.value for sample in samples if sample.quantity is Quantity.LOGIT_DIFFERENCE]
    assert len(apart) == differences
    assert all(value < 1e-5 for value in apart)
