"""Serving under tensor parallelism: the answers of one process, the bytes of the formula on every rank."""

from __future__ import annotations

import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from memory.caches.model import cache_terms
from parallelism.mesh import build_mesh
from parallelism.serving.losses import Losses
from parallelism.serving.model import gathered_vocabulary, served_model
from parallelism.serving.serve_pass import ServePass
from suite.case import Case, case_from
from suite.data import Windows
from suite.generation.loop import generate_without_cache
from suite.ranklog import RankLog, RankWriter, read_rank
from suite.record import Component, Quantity, Sample
from suite.serving_lengths import prompt_lengths
from suite.share import own_rows
from tests.distributed.ranks import run_jobs, run_on_ranks

pytestmark = pytest.mark.distributed

CPU = torch.device("cpu")
#: a vocabulary that no number of ranks here divides
MODEL = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "vocab": 61, "max_positions": 64, "ffn": 48}
WHOLE, COPIED, LEARNED = (
    MODEL,
    MODEL | {"kv_heads": 1},  # copied on every rank
    MODEL | {"kv_heads": 4, "norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True}
    | {"tied": True},
)  # fmt: skip


def case_of(model: dict[str, Any], tp: int, serving: dict[str, Any] | None = None, **cache: Any) -> Case:
    return case_from({
        "model": model, "layout": {"tp": tp}, "workload": {"seq_len": 12, "micro_batch": 3, "precision": "fp32"},
        "serving": {"new_tokens": 6, "shortest_prompt": 4} | (serving or {}), "cache": cache,
    })  # fmt: skip


def windows_of(case: Case) -> Windows:
    tokens = torch.randint(case.model.vocab, (200,), generator=torch.Generator().manual_seed(2)).int().numpy()
    return Windows(tokens, case.workload.seq_len, case.workload.seq_len, 0)


def served(case: Case, rank: int) -> tuple[RankLog, torch.Tensor]:
    """What a rank writes of the serve pass, and the tokens that it made without a cache."""
    mesh = build_mesh(case.layout, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        writer = RankWriter(Path(folder), rank)
        work = ServePass(case, rank, CPU, mesh, windows_of(case), writer, Losses())
        work.run()
        writer.close()
        tokens = generate_without_cache(work.model, case, work.prompts, work.lengths).tokens
        return read_rank(Path(folder), rank), tokens


CASES = [
    case_of(WHOLE, 2),
    case_of(COPIED, 2, page_tokens=4),
    case_of(COPIED, 2, {"sampling": "beam", "beams": 2}, allocation="growing"),
    case_of(LEARNED, 2, {"sampling": "top-k", "top_k": 9}, cache_dtype="int8"),
    case_of(LEARNED, 2, cache_tokens=15),
]


@pytest.fixture(scope="module")
def found() -> dict[Case, tuple[tuple[RankLog, torch.Tensor], ...]]:
    ran = run_jobs(2, [partial(served, case) for case in CASES])
    return {case: run.result() for case, run in zip(CASES, ran, strict=True)}


def values(log: RankLog, quantity: Quantity) -> dict[Component | None, float]:
    return {sample.component: sample.value for sample in log.samples if sample.quantity is quantity}


@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: case.label)
def test_ranks_answer_as_one_process_does(case: Case, found: dict[Case, Any]) -> None:
    alone = case_of(case.to_mapping()["model"], 1, case.to_mapping()["serving"])
    prompts = torch.from_numpy(windows_of(case).global_batch(0, 3)[0])
    expected = generate_without_cache(served_model(alone, None, CPU), alone, prompts, prompt_lengths(alone)).tokens
    for log, tokens in found[case]:
        assert tokens.equal(expected)
        assert values(log, Quantity.TOKENS_MADE) == {None: 6}
    first, second = (log for log, _ in found[case])
    if case.cache.cache_dtype == "auto":
        assert values(first, Quantity.TOKENS_DIFFER) == {None: 0}
    assert values(second, Quantity.TOKENS_DIFFER) == {}  # the same sequences, which would count twice
    apart = [value for log in (first, second) for value in values(log, Quantity.LOGIT_DIFFERENCE).values()]
    assert bool(apart) == (case.serving.sampling != "beam")
    assert max(apart, default=0.0) < (1e-4 if case.cache.cache_dtype == "auto" else 0.05)


@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: case.label)
def test_every_ranks_cache_takes_and_reads_the_bytes_of_the_formula(case: Case, found: dict[Case, Any]) -> None:
    for rank, (log, _) in enumerate(found[case]):
        for quantity in (Quantity.CACHE, Quantity.CACHE_READ):
            terms: Counter[Component | None] = Counter()
            for term in cache_terms(case, rank):
                terms[term.component] += term.nbytes if term.quantity is quantity else 0
            assert values(log, quantity) == +terms


def test_a_key_value_head_of_two_ranks_is_whole_on_both(found: dict[Case, Any]) -> None:
    """2 layers, 2 lanes, 3 sequences of 17 entries: 5 pages of 4; one head of 8 numbers in fp32 on each rank."""
    log, _ = found[CASES[1]][1]
    assert sum(values(log, Quantity.CACHE_READ).values()) == 2 * 2 * (5 + 4 + 3) * 4 * 8 * 4


def test_every_repetition_is_timed(found: dict[Case, Any]) -> None:
    log, _ = found[CASES[0]][0]
    indices = {
        quantity: [sample.index for sample in log.samples if sample.quantity is quantity] for quantity in Quantity
    }
    assert indices[Quantity.PREFILL_TIME] == list(range(6))
    assert indices[Quantity.DECODE_TIME] == list(range(3 * 5))
    assert all(sample.value > 0 for sample in timed(log))


def timed(log: RankLog) -> list[Sample]:
    return [sample for sample in log.samples if sample.quantity in (Quantity.PREFILL_TIME, Quantity.DECODE_TIME)]


def test_a_cache_that_fills_up_ends_the_case_and_not_the_ranks(found: dict[Case, Any]) -> None:
    for log, _ in found[CASES[4]]:
        assert log.failure is not None
        assert log.failure.kind == "cache_full"
        assert log.failure.message.startswith(
            "the cache was full after 4 of 6 tokens: the cache has room for 15 tokens"
        )
        assert values(log, Quantity.TOKENS_MADE) == {None: 4}
        assert not timed(log)


def test_parts_of_a_vocabulary_that_ranks_do_not_divide_are_joined_in_order() -> None:
    """7 words on 3 ranks: 3, 3 and 1."""

    def job(rank: int) -> torch.Tensor:
        logits = torch.arange(14.0).view(2, 1, 7)
        mine = own_rows(7, 3, rank)
        assert dist.group.WORLD is not None
        return gathered_vocabulary(logits[..., mine.start : mine.stop], 7, dist.group.WORLD)

    for whole in run_on_ranks(3, job):
        assert whole.equal(torch.arange(14.0).view(2, 1, 7))
