"""How much fits when a model is served: held to arithmetic by hand, to trying every size, and to never shrinking."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from memory.inference import InferenceModel, Phase
from memory.published_inference import PublishedInference, inference_of, resized
from memory.serving_limits import Limits
from suite.cache import CacheDtype
from suite.case import Case, case_from
from suite.layout import Recompute
from suite.models.ledgers import ledger_of
from suite.models.served import SERVED_MODELS, served_model_of
from suite.parse import SpecError, to_mapping
from suite.spec import AttentionKernel, Workload
from suite.tape import FP32, Backend

pytestmark = pytest.mark.unit

SMALL = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 96, "vocab": 128, "max_positions": 256}


def case_of(model: object = None, tp: int = 1, context: int = 64, batch: int = 1, **serving: int) -> Case:
    return case_from({
        "model": SMALL if model is None else model, "layout": {"tp": tp}, "cluster": {"device": "h100-sxm"},
        "workload": {"seq_len": context - 8, "micro_batch": batch}, "serving": {"new_tokens": 8} | serving,
    })  # fmt: skip


def served(name: str, tp: int = 1) -> Case:
    return case_of(to_mapping(SERVED_MODELS[name].spec), tp)


# --- published figures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("llama2-7b", 512 * 1024),  # 0.5 MiB: arXiv:2307.09288's shape, as vLLM's and others' posts print it
        ("llama3-8b", 128 * 1024),
        ("llama3-70b", 320 * 1024),
        ("llama3-405b", 516_096),  # 516 KB, arXiv:2505.09343, table 1
        ("qwen2.5-72b", 327_680),  # 327.68 KB, the same table
        ("opt-13b", 800 * 1024),  # arXiv:2309.06180, section 3
        ("deepseek-v2", 69_120),
        ("deepseek-v3", 70_272),  # 70.272 KB, arXiv:2505.09343, table 1
    ],
)
def test_a_token_costs_what_was_published(name: str, published: int) -> None:
    case = served(name) if name in SERVED_MODELS else case_of(name)
    assert inference_of(case).cache_bytes_per_token() == published


def test_published_totals_are_those_of_the_table_and_opt_s_shapes_give_them() -> None:
    with (Path(__file__).parents[1] / "published" / "params.csv").open(encoding="utf-8") as file:
        published = {row["model"]: int(row["params"]) for row in csv.DictReader(file) if row["params"].isdecimal()}
    named = {name: model.parameters for name, model in SERVED_MODELS.items() if name in published}
    assert named == {name: published[name] for name in named}
    assert set(SERVED_MODELS) - set(named) == {"opt-13b"}
    for name in ("opt-125m", "opt-13b", "opt-30b"):  # two rows of the positions stand for no token
        model = SERVED_MODELS[name]
        ledger = ledger_of(model.spec, Workload(seq_len=8), Recompute(), FP32, Backend.CPU)
        assert ledger.parameters + 2 * model.spec.hidden == model.parameters


def test_a_model_that_only_shares_a_published_ones_name_is_not_it() -> None:
    spec = SERVED_MODELS["qwen3-235b-a22b"].spec
    assert served_model_of(replace(spec, kv_heads=1)) is SERVED_MODELS["qwen3-235b-a22b"]
    assert served_model_of(replace(spec, layers=4)) is None


def test_published_weights_are_shared_by_tensor_ranks_and_no_pipeline_is_known() -> None:
    model = inference_of(served("qwen3-235b-a22b", tp=4))
    assert isinstance(model, PublishedInference)
    assert model.total_bytes(Phase.LOADED) == 2 * 235_093_634_560 // 4
    data = served("qwen3-235b-a22b").to_mapping() | {"layout": {"pp": 2}}
    data["cluster"]["per_node"] = 0
    with pytest.raises(SpecError, match=r"layout.pp: 2 with qwen3-235b-a22b"):
        inference_of(case_from(data))


# --- what fits ----------------------------------------------------------------------------------------------------


def test_the_largest_batch_and_longest_context_are_the_quotient_of_what_is_left() -> None:
    """OPT-13B on 40 GB, arXiv:2309.06180's example: weights of 26 GB, 800 KiB a token. No forward pass is counted for
    it, so that both are divisions; what is kept has 8 bytes of place an entry beside."""
    case, room, token = served("opt-13b"), 40 * 10**9, 800 * 1024
    left = room - 2 * 12_853_473_280
    limits = Limits(case, room, 8192)
    assert limits.largest_batch(2048) == left // (2048 * token) == 8
    assert limits.longest_context(1) == 2048  # positions end it
    assert limits.longest_context(20) == left // (20 * token) == 872


@pytest.mark.parametrize("step_tokens", [None, 37, 512])
def test_no_larger_batch_fits_among_all_that_were_tried(step_tokens: int | None) -> None:
    """A forward pass's part of a prompt shrinks by steps, so that peaks do not only rise with the batch."""
    context = 10
    case = case_of(context=context)
    room = InferenceModel(case).total_bytes(Phase.LOADED) + 200_000
    limits = Limits(case, room, step_tokens)
    fitting = [batch for batch in range(1, 99) if limits.fits(batch, context)]
    assert 20 < max(fitting) < 98
    assert limits.largest_batch(context) == max(fitting)
    longest = limits.longest_context(9)
    assert 2 < longest < 256
    assert limits.fits(9, longest)
    assert not limits.fits(9, longest + 1)


def test_nothing_fits_a_device_that_the_weights_fill() -> None:
    case = case_of()
    room = InferenceModel(case).total_bytes(Phase.LOADED)
    assert Limits(case, room, 64).largest_batch(64) == 0
    assert Limits(case, room, 64).longest_context(1) == 0


@pytest.mark.parametrize("name", ["llama3-8b", "gpt2-xl"])
def test_more_room_or_a_smaller_cache_never_holds_less(name: str) -> None:
    case = case_of(name, context=1024)
    floor = InferenceModel(case).peak_bytes()
    batches = [Limits(case, floor + extra, 2048).largest_batch(1024) for extra in (0, 10**9, 4 * 10**9)]
    assert batches == sorted(batches)
    assert batches[-1] > 1
    narrow = replace(case, model=replace(case.model, kv_heads=1))
    assert Limits(narrow, floor + 10**9, 2048).largest_batch(1024) >= batches[1]
    shorter = [Limits(case, floor + 10**9, 2048).largest_batch(context) for context in (1024, 512, 128)]
    assert shorter == sorted(shorter)


# --- the forward pass in parts ------------------------------------------------------------------------------------


def test_a_forward_pass_over_a_part_of_the_prompts_needs_what_one_over_such_prompts_does() -> None:
    def passing(**settings: int) -> int:
        terms = InferenceModel(case_of("llama3-8b", **settings)).terms()
        return next(term.nbytes for term in terms if (term.phase, term.name) == (Phase.PREFILL, "forward pass"))

    whole = passing(context=1032, batch=3)
    assert passing(context=1032, batch=3, prefill_tokens=2000) == whole
    assert passing(context=1032, batch=3, prefill_tokens=256) == passing(context=264, batch=3) < whole


def test_step_tokens_are_shared_out_among_the_prompts() -> None:
    case = resized(case_of(), batch=10, context=60, step_tokens=128)
    assert (case.workload.micro_batch, case.workload.seq_len, case.serving.prefill_tokens) == (10, 52, 12)
    assert InferenceModel(case).pass_tokens == 12
    assert resized(case_of(), batch=200, context=60, step_tokens=128).serving.prefill_tokens == 1
    assert resized(case_of(prefill_tokens=7), batch=10, context=60, step_tokens=None).serving.prefill_tokens == 7
    assert resized(case_of(), batch=1, context=4, step_tokens=8).serving.new_tokens == 3


def test_eager_scores_of_a_part_reach_back_to_the_prompts_start() -> None:
    """b a c (s - c) scores and their probabilities, 4 and 2 bytes: 2 x 4 x 16 x 40 x 6."""
    case = case_of(batch=2, prefill_tokens=16)
    case = replace(case, workload=replace(case.workload, attention=AttentionKernel.EAGER))
    terms = {term.name: term.nbytes for term in InferenceModel(case).terms() if term.phase is Phase.PREFILL}
    assert terms["scores over the cache"] == 2 * 4 * 16 * 40 * 6


def test_a_cache_s_own_terms_are_what_a_rank_holds() -> None:
    """Half as many bytes in fp8, with 8 bytes of place an entry: 2 layers x 2 lanes x 3 x 64 x 2 heads x 16."""
    case = case_of(batch=3)
    plain = {term.name: term.nbytes for term in InferenceModel(case).terms() if term.phase is Phase.DECODE}
    assert plain["key-value cache"] == 2 * 2 * 3 * 64 * 32 * 2
    eight = replace(case, cache=replace(case.cache, cache_dtype=CacheDtype.FP8))
    found = {term.name: term.nbytes for term in InferenceModel(eight).terms() if term.phase is Phase.DECODE}
    assert found["cache: keys"] == found["cache: values"] == 2 * 3 * 64 * 32
    assert found["cache: tables"] == 3 * 64 * 8
    assert InferenceModel(eight).cache_bytes_per_token() == 128
