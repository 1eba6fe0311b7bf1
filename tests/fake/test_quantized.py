"""Caches of codes and of narrow types: what is read against what was written, bytes against the allocator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory.caches.model import cache_bytes, cache_terms
from suite.allocations import mark, record_allocations
from suite.cache import CacheDtype
from suite.caches.build import build_cache
from suite.caches.core import next_logits, through
from suite.caches.quantized import QuantizedStore
from suite.caches.store import PlainStore
from suite.case import Case, case_from
from suite.models.decoder_module import Decoder
from suite.parse import SpecError
from suite.record import Component, Quantity

pytestmark = pytest.mark.fake

CPU = torch.device("cpu")
WIDTH, FP16_MOST = 16, 65504.0
GROUPS = [0, 1, 2, 4, 8, 16]
#: what keys look like, constants that fp16 has and has not, the ends of fp16's range, far below and beyond it
SPREADS = [1.0, 0.0, 1e-3, 7e-7, 1e-9, 1e-42, 300.0, 6e4, 1e5, 3e38]
CENTRES = [0.0, 1.0, -1.0, 1 / 3, -1e-5, 1e-42, 1000.1, -65503.9, 7e4, -1e38]


def store_of(bits: int, group: int, compute: torch.dtype = torch.float32, entries: int = 5) -> QuantizedStore:
    return QuantizedStore(2, entries, 3, WIDTH, bits, group or WIDTH, compute, CPU)


def grouped(x: torch.Tensor, group: int) -> torch.Tensor:
    return x.unflatten(-1, (-1, group or WIDTH))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from([4, 8]), st.sampled_from(GROUPS), st.sampled_from(SPREADS), st.sampled_from(CENTRES),
    st.integers(0, 10**6),
)  # fmt: skip
def test_a_number_is_read_within_half_a_scale_whatever_it_is(
    bits: int, group: int, spread: float, centre: float, seed: int
) -> None:
    """The bound of QuantizedStore's docstring, with the rounding of three fp32 operations over the group's range."""
    x = centre + spread * torch.randn(2, 5, 3, WIDTH, generator=torch.Generator().manual_seed(seed)).clamp(-4, 4)
    x = x.clamp(-3e38, 3e38)
    store = store_of(bits, group)
    store.write(slice(5), x)
    found, meant = store.read(slice(5)), x.clamp(-FP16_MOST, FP16_MOST)
    scale, offset = (part.double().unsqueeze(-1) for part in store.scales)
    assert found.isfinite().all()
    reach = offset.abs() + scale * (2**bits - 1)
    error = (grouped(found, group).double() - grouped(meant, group).double()).abs()
    assert (error <= scale / 2 + 3 * 2**-24 * reach + 1e-38).all()
    least = grouped(meant, group).double().amin(-1, keepdim=True)
    greatest = grouped(meant, group).double().amax(-1, keepdim=True)
    distance = torch.maximum(2**-10 * least.abs(), torch.tensor(2.0**-24))
    assert (scale <= (greatest - least + distance) / (2**bits - 1) * (1 + 2**-10) + 2**-24 + 1e-38).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_numbers_that_the_codes_have_come_back_as_they_were(bits: int) -> None:
    levels = 2**bits - 1
    x = torch.zeros(2, 1, 3, WIDTH)
    x[..., 1], x[..., 2], x[..., 3] = levels * 0.25, 0.25, 0.25 * (levels - 1)  # scale 1/4 and offset 0, both fp16's
    store = store_of(bits, 0)
    store.write(slice(1, 2), x)
    assert torch.equal(store.read(slice(1, 2)), x)
    constant = torch.full_like(x, 1.5)
    store.write(torch.tensor([4]), constant)
    assert torch.equal(store.read(torch.tensor([4, 1])), torch.cat((constant, x), dim=1))
    assert store.scales[0][:, 4].eq(0).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
def test_what_is_read_in_16_bits_is_what_is_read_in_32_rounded(bits: int, compute: torch.dtype) -> None:
    x = torch.randn(2, 5, 3, WIDTH, generator=torch.Generator().manual_seed(2)).to(compute)
    narrow, wide = store_of(bits, 4, compute), store_of(bits, 4)
    for store in (narrow, wide):
        store.write(slice(5), x)
    assert torch.equal(narrow.read(slice(5)), wide.read(slice(5)).to(compute))


@pytest.mark.parametrize("bits", [4, 8])
def test_entries_are_appended_picked_and_reordered_as_those_of_a_plain_store(bits: int) -> None:
    x = torch.randn(2, 5, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    whole, grown = store_of(bits, 8), store_of(bits, 8, entries=0)
    whole.write(slice(5), x)
    for part in x.split(2, dim=1):
        grown.append(part)
    assert torch.equal(grown.read(slice(5)), whole.read(slice(5)))
    picked, rows = torch.tensor([3, 0]), torch.tensor([1, 1])
    assert torch.equal(grown.read(picked), whole.read(slice(5))[:, picked])
    grown.reorder(rows)
    assert torch.equal(grown.read(slice(5)), whole.read(slice(5))[rows])


def test_more_bits_and_smaller_groups_are_closer() -> None:
    """Mean squared error over normal numbers. Twice the bits have 17 times as many levels: a squared error 289 times
    as small, up to what fp16 scales and offsets take."""
    x = torch.randn(2, 500, 3, WIDTH, generator=torch.Generator().manual_seed(0))

    def error(bits: int, group: int) -> float:
        store = store_of(bits, group, entries=500)
        store.write(slice(500), x)
        return float((store.read(slice(500)) - x).square().mean())

    four, eight = ([error(bits, group) for group in (16, 8, 4, 2)] for bits in (4, 8))
    assert four == sorted(four, reverse=True)
    assert eight == sorted(eight, reverse=True)
    assert four[0] / eight[0] == pytest.approx(17**2, rel=0.05)


@pytest.mark.parametrize("given_as", [torch.float32, torch.bfloat16])
def test_fp8_and_fp16_hold_what_is_beyond_them_as_their_largest(given_as: torch.dtype) -> None:
    x = torch.tensor([1e6, -1e6, 448.0, 1.0, 0.3], dtype=given_as).view(1, 1, 1, -1)
    for dtype, most in ((torch.float8_e4m3fn, 448.0), (torch.float16, 65504.0)):
        store = PlainStore(1, 0, 1, 5, dtype, given_as, CPU)
        store.append(x)
        found = store.read(slice(1)).flatten()
        assert found.dtype == given_as
        assert found[:2].tolist() == torch.tensor([most, -most], dtype=given_as).tolist()
        assert found[2:4].tolist() == [448.0, 1.0]
        assert found[4].item() == pytest.approx(0.3, rel=2**-4)  # e4m3: three bits behind the leading one


# --- through a model ------------------------------------------------------------------------------------

MODEL = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "vocab": 256, "max_positions": 64, "ffn": 96}


def case_of(batch: int = 2, seq_len: int = 12, new_tokens: int = 4, precision: str = "fp32", **cache: Any) -> Case:
    return case_from({
        "model": MODEL, "workload": {"seq_len": seq_len, "micro_batch": batch, "precision": precision},
        "serving": {"new_tokens": new_tokens}, "cache": cache,
    })  # fmt: skip


def model_of(case: Case) -> Decoder:
    torch.manual_seed(3)
    model = Decoder(case.model)
    model.reset_parameters()
    return model.eval()


QUANTIZED = [("int8", 0), ("int8", 8), ("int4", 0), ("int4", 4), ("int4", 16)]
PLAIN = [(dtype, 0) for dtype in ("fp32", "bf16", "fp16", "fp8")]


@pytest.mark.parametrize("kept", [{}, {"allocation": "growing"}, {"page_tokens": 8}])
@pytest.mark.parametrize(("dtype", "group"), QUANTIZED + PLAIN)
def test_the_allocator_gives_codes_and_scales_the_bytes_of_the_formula(
    dtype: str, group: int, kept: dict[str, Any]
) -> None:
    for batch, seq_len in ((1, 9), (3, 20)):
        case = case_of(batch, seq_len, cache_dtype=dtype, quant_group=group, **kept)
        tokens = seq_len + 3
        with record_allocations() as trace:
            cache = build_cache(case, CPU)
            cache.advance(torch.arange(tokens).expand(batch, -1))
            for layer in cache.layers:
                layer.extend(*torch.randn(2, batch, tokens, 2, 16))
            held = {tensor.untyped_storage().data_ptr() for tensors in cache.held().values() for tensor in tensors}
            mark("answered")
        found = [block.nbytes for block in trace.alive(trace.marks[0].at) if block.address in held]
        assert sum(found) == cache_bytes(case)
        width = CacheDtype(dtype).bits
        assert width is not None
        scales = 16 // (group or 16) * 4 if dtype.startswith("int") else 0
        entries = -(-tokens // 8) * 8 if "page_tokens" in kept else tokens
        read = 2 * 2 * batch * entries * 2 * (16 * width // 8 + scales)  # layers, lanes, sequences, entries, heads
        assert cache_bytes(case, quantity=Quantity.CACHE_READ) == read
        assert any(term.component is Component.SCALES for term in cache_terms(case)) == bool(scales)


def test_a_model_answers_through_codes_as_closely_as_they_are_fine() -> None:
    """Furthest logit from the exact cache's, at logits of unit size: int8 within a hundredth, and every coarser store
    further off than every finer one."""
    ids = torch.randint(256, (2, 15), generator=torch.Generator().manual_seed(5))
    places = torch.arange(15).expand(2, -1)

    def logits(**cache: Any) -> torch.Tensor:
        case = case_of(**cache)
        model, cached = model_of(case), build_cache(case, CPU)
        model.head.weight.data *= 6  # type: ignore[union-attr]
        with through(model, cached), torch.no_grad():
            next_logits(model, cached, ids[:, :12], places[:, :12])
            return torch.stack(
                [next_logits(model, cached, ids[:, at : at + 1], places[:, at : at + 1]) for at in range(12, 15)]
            )

    exact = logits()
    order = [{"cache_dtype": "int8", "quant_group": 4}, {"cache_dtype": "int8"}, {"cache_dtype": "int4"}]
    off = [float((logits(**cache) - exact).abs().max()) for cache in order]
    assert exact.std() == pytest.approx(1.0, rel=0.25)
    assert off == sorted(off)
    assert 0 < off[1] < 0.01


def test_groups_and_halves_must_divide_what_a_token_leaves() -> None:
    with pytest.raises(SpecError, match=r"cache.quant_group\(12\) with model.head_dim\(16\)"):
        case_of(cache_dtype="int8", quant_group=12)
    latent = {"kv_rank": 24, "rope_dim": 4, "nope_dim": 8, "v_dim": 8}
    model = MODEL | {"kv_heads": 4, "latent": latent}
    base = {"model": model, "workload": {"seq_len": 12}, "serving": {"new_tokens": 4}}
    with pytest.raises(
        SpecError, match=r"cache.quant_group\(8\) with model.latent.kv_rank\(24\), model.latent.rope_dim"
    ):
        case_from(base | {"cache": {"cache_dtype": "int4", "quant_group": 8}})
    terms = cache_terms(case_from(base | {"cache": {"cache_dtype": "int4", "quant_group": 4}}))
    stored = {(term.component, term.formula): term.nbytes for term in terms if term.quantity is Quantity.CACHE}
    assert stored[Component.KEYS, "L*b*room*d_c*4/8"] == 2 * 16 * 12
    assert stored[Component.SCALES, "L*b*room*d_rope/4*4"] == 2 * 16 * 1 * 4
