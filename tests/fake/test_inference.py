"""Inference: a forward pass that keeps nothing, held to the allocator, and what the formulas say of serving."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from memory.inference import InferenceModel, Phase
from suite.allocations import mark, record_allocations
from suite.caches.build import build_cache
from suite.caches.core import next_logits, through
from suite.case import Case, case_from
from suite.models.decoder_module import Decoder
from suite.models.presets import PRESETS
from suite.parse import SpecError

pytestmark = pytest.mark.fake

SMALL = {"layers": 3, "hidden": 64, "heads": 4, "vocab": 512, "max_positions": 256}
GPT = SMALL | {"ffn": 256, "norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True, "tied": True}
LLAMA = SMALL | {"ffn": 176, "kv_heads": 2}
#: lengths, an epsilon and the like, in tensors of a few elements
SCALARS = 64


def case_of(model: dict[str, object] | str, **settings: object) -> Case:
    layout = {key: settings.pop(key) for key in ("tp", "pp", "fsdp") if key in settings}
    serving = {"new_tokens": settings.pop("new_tokens", 1)}
    workload = {"seq_len": 64, "micro_batch": 2} | settings
    return case_from({"model": model, "layout": layout, "workload": workload, "serving": serving})


def measured_prefill(case: Case) -> int:
    """Bytes of the allocator, above the weights, at the highest instant of reading the prompts."""
    dtype = torch.float32 if case.workload.precision == "fp32" else torch.bfloat16
    model = Decoder(case.model, case.workload.attention).to(dtype).eval()
    if model.rope is not None:  # tables stay in fp32
        model.rope = Decoder(case.model).rope
    ids = torch.randint(case.model.vocab, (case.workload.micro_batch, case.workload.seq_len))
    assert model.norm is not None
    assert model.head is not None
    with record_allocations() as trace, torch.no_grad():
        mark("prefill")
        hidden = model.norm(model.trunk(ids))
        model.head(hidden[:, -1]).float()
        mark("end")
    start, end = (item.at for item in trace.marks)
    return trace.peak(start, end)[0] - trace.total(start)


@pytest.mark.parametrize("attention", ["flash", "eager"])
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
@pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])
def test_the_working_set_of_a_prefill_is_what_the_allocator_hands_out(
    model: dict[str, object], precision: str, attention: str
) -> None:
    case = case_of(model, precision=precision, attention=attention, new_tokens=8)
    terms = {term.name: term.nbytes for term in InferenceModel(case).terms() if term.phase is Phase.PREFILL}
    assert terms["forward pass"] == pytest.approx(measured_prefill(case), abs=SCALARS)


def test_llama_7b_in_16_bits_costs_512_kib_a_token_and_13_gib_of_weights() -> None:
    model = InferenceModel(case_of("llama-7b", seq_len=1024, micro_batch=4, new_tokens=1024))
    assert model.cache_bytes_per_token() == 512 * 1024
    loaded = {term.name: term.nbytes for term in model.terms() if term.phase is Phase.LOADED}
    assert loaded["weights"] == 2 * 6_738_415_616
    held = {term.name: term.nbytes for term in model.terms() if term.phase is Phase.DECODE}
    assert held["key-value cache"] == 4 * 2048 * 512 * 1024


def test_tensor_and_pipeline_ranks_hold_their_share_of_the_cache_between_them() -> None:
    whole = InferenceModel(case_of("llama3-8b")).cache_bytes_per_token()
    assert whole == 128 * 1024  # published: 131,072 bytes
    tp = InferenceModel(case_of("llama3-8b", tp=4))
    assert [tp.cache_bytes_per_token(rank) for rank in range(4)] == [whole // 4] * 4
    pp = InferenceModel(case_of("llama3-8b", pp=4))
    assert sum(pp.cache_bytes_per_token(rank) for rank in range(4)) == whole


def test_a_longer_prompt_or_answer_or_a_larger_batch_never_needs_less() -> None:
    def peak(seq_len: int, new_tokens: int, batch: int) -> int:
        case = case_of("llama3-8b", seq_len=seq_len, micro_batch=batch, new_tokens=new_tokens)
        return InferenceModel(case).peak_bytes()

    base = peak(256, 64, 2)
    assert base < peak(512, 64, 2)
    assert base < peak(256, 128, 2)
    assert base < peak(256, 64, 3)


@pytest.mark.parametrize(
    ("settings", "new_tokens", "words"),
    [
        ({}, 0, "serving.new_tokens: must be at least 1 where it is given, got 0"),
        ({}, 200, r"serving.new_tokens: seq_len\(64\) \+ 200 = 264 is beyond max_positions\(256\)"),
        ({"fsdp": 2}, 8, "layout: fsdp2: serving takes tp, pp and dp"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(settings: dict[str, object], new_tokens: int, words: str) -> None:
    with pytest.raises(SpecError, match=f"^{words}"):
        case_of(LLAMA, new_tokens=new_tokens, **settings)


def test_decoding_in_the_open_scores_the_whole_cache() -> None:
    """b a (s + n) scores for one query a head: 4 bytes each, and 2 in bf16."""
    spec = PRESETS["llama-7b"]
    case = case_of("llama-7b", attention="eager", seq_len=1000, micro_batch=3, new_tokens=24)
    terms = {term.name: term.nbytes for term in InferenceModel(case).terms() if term.phase is Phase.DECODE}
    assert terms["scores over the cache"] == 3 * spec.heads * 1024 * 6


@pytest.mark.parametrize("chunk", [16, 32])
def test_prompts_read_in_parts_need_what_one_part_needs(chunk: int) -> None:
    """Through a real cache. Beside what the formula counts, a pass has the places of its tokens twice, turns each
    sequence by its own rows of the tables, and holds a mask of what is seen: at most b c (16 + 4 r + c) bytes."""
    case = case_of(LLAMA, precision="fp32", new_tokens=8)
    case = replace(case, serving=replace(case.serving, prefill_tokens=chunk))
    model, cache = Decoder(case.model).eval(), build_cache(case, torch.device("cpu"))
    ids, places = torch.randint(512, (2, 64)), torch.arange(64).expand(2, -1)
    with through(model, cache), torch.no_grad(), record_allocations() as trace:
        for start in range(0, 64, chunk):
            mark("pass")
            next_logits(model, cache, ids[:, start : start + chunk], places[:, start : start + chunk])
        mark("end")
    marks = [item.at for item in trace.marks]
    needed = max(trace.peak(start, end)[0] - trace.total(start) for start, end in itertools.pairwise(marks))
    terms = {term.name: term.nbytes for term in InferenceModel(case).terms() if term.phase is Phase.PREFILL}
    beside = 2 * chunk * (16 + 4 * case.model.rotary_dim + chunk)
    assert terms["forward pass"] <= needed <= terms["forward pass"] + beside
