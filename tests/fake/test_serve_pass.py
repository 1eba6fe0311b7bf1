"""The serve pass in one process: what it writes, how it counts, and a model whose key-value heads are copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import parallelism.serving.serve_pass as module
from memory.caches.model import cache_terms
from parallelism.serving.bytes import requested
from parallelism.serving.losses import Losses
from parallelism.serving.model import copy_heads
from parallelism.serving.reads import CountingStore, Reads
from parallelism.serving.serve_pass import ServePass
from suite.caches.store import PlainStore
from suite.case import Case, case_from
from suite.data import Windows
from suite.models.decoder_module import Decoder
from suite.ranklog import RankLog, RankWriter, read_rank
from suite.record import Component, Quantity

pytestmark = pytest.mark.fake

CPU = torch.device("cpu")
MODEL = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "vocab": 61, "max_positions": 64, "ffn": 48}


def served(folder: Path, serving: dict[str, Any] | None = None, **cache: Any) -> tuple[Case, RankLog]:
    case = case_from({
        "model": MODEL, "workload": {"seq_len": 12, "micro_batch": 3, "precision": "fp32"},
        "serving": {"new_tokens": 5} | (serving or {}), "cache": cache,
    })  # fmt: skip
    tokens = torch.randint(61, (200,), generator=torch.Generator().manual_seed(2)).int().numpy()
    ServePass(case, 0, CPU, None, Windows(tokens, 12, 12, 0), RankWriter(folder, 0), Losses()).run()
    return case, read_rank(folder, 0)


def of(log: RankLog, quantity: Quantity) -> list[float]:
    return [sample.value for sample in log.samples if sample.quantity is quantity]


@pytest.mark.parametrize("cache", [{}, {"page_tokens": 4}, {"cache_dtype": "int4", "quant_group": 4}], ids=str)
@pytest.mark.parametrize("serving", [{}, {"shortest_prompt": 3, "prefill_tokens": 5}, {"new_tokens": 1}], ids=str)
def test_bytes_stored_and_read_are_those_of_the_formulas(
    serving: dict[str, Any], cache: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PREFILLS", 0)
    case, log = served(tmp_path, serving, **cache)
    for quantity in (Quantity.CACHE, Quantity.CACHE_READ):
        assert sum(of(log, quantity)) == sum(term.nbytes for term in cache_terms(case) if term.quantity is quantity)


def test_a_rounding_cache_is_told_from_an_exact_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PREFILLS", 0)
    found = {dtype: served(tmp_path / dtype, cache_dtype=dtype)[1] for dtype in _folders(tmp_path, "fp32", "int4")}
    assert of(found["fp32"], Quantity.TOKENS_DIFFER) == [0]
    assert of(found["fp32"], Quantity.LOGIT_DIFFERENCE)[0] < 1e-5
    assert 1e-4 < of(found["int4"], Quantity.LOGIT_DIFFERENCE)[0] < 0.1


def test_tokens_chosen_of_one_pass_are_those_of_the_text_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PREFILLS", 0)
    monkeypatch.setattr(module, "REREAD_TOKENS", 0)
    monkeypatch.setattr(module, "generate_without_cache", None)  # it would be called
    serving = {"sampling": "top-k", "top_k": 30, "shortest_prompt": 4}
    assert of(served(tmp_path, serving)[1], Quantity.TOKENS_DIFFER) == [0]


def _folders(root: Path, *names: str) -> tuple[str, ...]:
    for name in names:
        (root / name).mkdir()
    return names


# --- counting ------------------------------------------------------------------------------------------------


def test_reads_are_counted_in_stored_bytes_each_entry_once() -> None:
    reads = Reads()
    store = reads.around(PlainStore(2, 10, 3, 4, torch.bfloat16, torch.float32, CPU))
    store.read(slice(7))
    store.read(torch.tensor([1, 8, 8]))
    held = {Component.KEYS: (store.payload,)}
    assert reads.nbytes(held) == {Component.KEYS: (7 + 2) * 2 * 3 * 4 * 2}
    reads.forget()
    assert not any(reads.nbytes(held).values())
    assert isinstance(store, CountingStore)


def test_of_cudas_blocks_those_in_use_count_as_they_were_asked_for() -> None:
    blocks = [
        {"address": 512, "requested_size": 100, "size": 512, "state": "active_allocated"},
        {"address": 1024, "requested_size": 7, "size": 512, "state": "inactive"},
    ]
    assert requested([{"blocks": blocks}, {"blocks": []}]) == {512: 100}


# --- copied heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_a_model_whose_key_value_heads_are_copied_answers_as_before(bias: bool) -> None:
    case = case_from({"model": MODEL | {"bias": bias}, "workload": {"seq_len": 12}})
    torch.manual_seed(0)
    model = Decoder(case.model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(61, (2, 12))
    before = model(ids)
    copy_heads(model, 4)
    assert model.blocks["0"].attention.wk.weight.shape == (4 * 8, 32)
    torch.testing.assert_close(model(ids), before)
