"""FLOPs and bytes of served cases, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from memory.caches.model import cache_terms
from parallelism.simulator.roofline import Roofline
from parallelism.simulator.serving_work import Work, arithmetic_intensity, decode_work, middle_of, prefill_work
from suite.case import Case, case_from
from suite.parse import SpecError

pytestmark = pytest.mark.unit

LLAMA_7B, EMBEDDING, NORMS = 6_738_415_616, 32000 * 4096, 65 * 4096
SMALL = {"layers": 4, "hidden": 64, "heads": 4, "vocab": 512, "max_positions": 256, "ffn": 96}
LATENT = {"kv_rank": 24, "rope_dim": 8, "nope_dim": 16, "v_dim": 16}


def case_of(model: Any = "llama-7b", batch: int = 1, seq_len: int = 128, new: int = 20, **parts: Any) -> Case:
    serving = {"new_tokens": new} | parts.pop("serving", {})
    work = {"seq_len": seq_len, "micro_batch": batch, "precision": "bf16"}
    cluster = {"device": "a100-80gb-sxm"}
    return case_from({"model": model, "workload": work, "cluster": cluster, "serving": serving, **parts})


def step_of(case: Case) -> Work:
    return decode_work(case, cache_terms(case))


def test_a_token_of_llama_7b_takes_two_flops_a_weight_and_four_a_channel_of_every_entry() -> None:
    work = step_of(case_of())
    entries = 128 + 20 - 1  # the last token made is not read
    assert work.flops == 2 * (LLAMA_7B - EMBEDDING - NORMS) + 32 * 4 * 4096 * entries
    assert work.weight_bytes == 2 * (LLAMA_7B - EMBEDDING) + 2 * 4096  # of the embedding one row
    assert work.cache_bytes == 512 * 1024 * entries  # 512 KiB a token (shared/published/kv_cache.csv)
    assert arithmetic_intensity(work) == pytest.approx(1.0, abs=0.01)  # two FLOPs for two bytes


def test_a_batch_shares_the_weights_and_not_the_cache() -> None:
    one, eight = step_of(case_of()), step_of(case_of(batch=8))
    assert eight.flops == 8 * one.flops
    assert eight.cache_bytes == 8 * one.cache_bytes
    assert eight.weight_bytes - one.weight_bytes == 7 * 2 * 4096


def test_prompts_take_the_lower_triangle_and_one_row_of_the_head() -> None:
    work, head = prefill_work(case_of(batch=2)), 32000 * 4096
    blocks = LLAMA_7B - EMBEDDING - NORMS - head
    pairs = 128 * 129 // 2
    assert work.flops == 2 * (2 * blocks * 128 + 2 * head + 32 * 4 * 4096 * pairs)
    assert work.weight_bytes == 2 * (LLAMA_7B - EMBEDDING) + 2 * 4096 * 2 * 128


def test_chunks_read_weights_and_earlier_entries_again_and_compute_the_head_once_more() -> None:
    whole, halves = (prefill_work(case_of(serving={"prefill_tokens": tokens})) for tokens in (0, 64))
    assert halves.flops - whole.flops == 2 * EMBEDDING  # an untied head is as large
    assert halves.weight_bytes - whole.weight_bytes == 2 * (LLAMA_7B - EMBEDDING)
    assert halves.cache_bytes == 512 * 1024 * 64


def test_a_tied_head_reads_the_embedding_whole() -> None:
    case = case_of("gpt2")
    spec, parameters = case.model, 124_439_808
    table = spec.max_positions * spec.hidden
    assert step_of(case).weight_bytes == 2 * (parameters - table) + 2 * 2 * spec.hidden  # a row of both tables


def test_tensor_parallel_ranks_share_the_flops_and_the_cache() -> None:
    whole, half = step_of(case_of()), step_of(case_of(layout={"tp": 2}))
    assert (half.flops, half.cache_bytes) == (whole.flops / 2, whole.cache_bytes / 2)


def test_a_pipeline_does_the_same_work_on_one_rank_after_the_other() -> None:
    assert step_of(case_of(layout={"pp": 2})) == step_of(case_of())


def test_a_window_bounds_what_is_read_and_computed() -> None:
    full, kept = step_of(case_of(SMALL)), step_of(case_of(SMALL, cache={"window": 32}))
    fewer = 128 + 20 - 1 - 32
    assert full.flops - kept.flops == 4 * 4 * 64 * fewer
    assert full.cache_bytes - kept.cache_bytes == 4 * 2 * 64 * 2 * fewer
    assert prefill_work(case_of(SMALL, cache={"window": 32})).flops < prefill_work(case_of(SMALL)).flops


def test_codes_halve_what_is_read_and_leave_the_flops() -> None:
    plain, codes = step_of(case_of(SMALL)), step_of(case_of(SMALL, cache={"cache_dtype": "int8"}))
    assert codes.flops == plain.flops
    assert plain.cache_bytes / 2 < codes.cache_bytes < plain.cache_bytes  # scales beside them


def test_an_absorbed_latent_reads_latents_as_they_are_and_a_plain_one_expands_them() -> None:
    absorbed, plain = (
        step_of(case_of(SMALL | {"latent": LATENT}, batch=3, cache={"latent_form": form}))
        for form in ("absorbed", "plain")
    )
    entries, heads = 147, 4
    pair_absorbed, pair_plain = 2 * heads * (24 + 8 + 24), 2 * heads * (16 + 8 + 16)
    expanded = 2 * 24 * heads * (16 + 16)  # of every entry but the new one, which both forms' products hold
    assert plain.flops - absorbed.flops == 4 * 3 * (entries * (pair_plain - pair_absorbed) + (entries - 1) * expanded)
    assert absorbed.cache_bytes == 4 * 3 * entries * (24 + 8) * 2


def test_beams_are_sequences_of_their_own() -> None:
    beams = step_of(case_of(SMALL, serving={"sampling": "beam", "beams": 4}))
    assert beams.flops == step_of(case_of(SMALL, batch=4)).flops


def test_the_middle_step_has_half_of_the_answer() -> None:
    assert middle_of(case_of(new=20)).serving.new_tokens == 11
    assert middle_of(case_of(new=1)).serving.new_tokens == 1


def test_a_case_that_is_trained_and_terms_without_keys_are_refused() -> None:
    with pytest.raises(SpecError, match="new_tokens: missing"):
        prefill_work(case_from({"model": "llama-1m"}))
    with pytest.raises(SpecError, match="no term of keys"):
        decode_work(case_of(), ())


def test_a_roofline_bends_where_both_bounds_meet() -> None:
    roofline = Roofline(300e12, 2e12, "made up")
    assert roofline.ridge == 150
    at, below, above = (Work(flops, 1e9, 1e9) for flops in (150 * 2e9, 2e9, 1e15))
    assert roofline.compute_seconds(at) == pytest.approx(roofline.memory_seconds(at))
    faster = Roofline(300e12, 4e12, "made up")
    assert faster.seconds(below) == roofline.seconds(below) / 2  # reading bounds it
    assert faster.seconds(above) == roofline.seconds(above) == 1e15 / 300e12
