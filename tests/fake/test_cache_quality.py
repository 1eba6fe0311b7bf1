"""What a cache costs in quality: losses through it against losses that are taken another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from parallelism.serving.quality import (
    held_out_text,
    loss_through_cache,
    loss_without_cache,
    trained_model,
    training_case,
)
from suite.caches.build import build_cache
from suite.caches.core import next_logits, through
from suite.case import Case, case_from
from suite.models.decoder_module import Decoder
from suite.parse import SpecError

pytestmark = pytest.mark.fake

CPU = torch.device("cpu")
MODEL = {"layers": 2, "hidden": 32, "heads": 2, "kv_heads": 1, "vocab": 320, "max_positions": 64, "ffn": 48}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(
        "".join(f"{count} sheep and {count * count % 97} goats stand on hill {count % 7}.\n" for count in range(400))
    )
    return path


def case_of(
    corpus: Path, steps: int = 30, serving: dict[str, Any] | None = None, model: dict[str, Any] = MODEL, **cache: Any
) -> Case:
    return case_from({
        "model": model, "workload": {"seq_len": 18, "micro_batch": 4, "precision": "fp32"},
        "recipe": {"steps": steps, "learning_rate": 1e-2, "data": str(corpus), "tokenizer": "byte",
                   "validation_batches": 2},
        "serving": {"new_tokens": 6} | (serving or {}), "cache": cache,
    })  # fmt: skip


@pytest.fixture(scope="module")
def model(corpus: Path) -> Decoder:
    return trained_model(case_of(corpus), CPU)


def test_an_exact_cache_costs_nothing_and_coarser_codes_cost_more(corpus: Path, model: Decoder) -> None:
    ids, labels = held_out_text(case_of(corpus), CPU)
    assert ids.shape == (8, 24)
    assert torch.equal(ids[:, 1:], labels[:, :-1])
    exact = loss_without_cache(model, ids, labels)
    assert exact == pytest.approx(F.cross_entropy(model(ids).flatten(0, 1), labels.flatten()).item(), abs=1e-6)
    assert exact < 2.5  # it has learned: an even guess among 256 bytes is worth 5.5
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"allocation": "growing"},
        {"cache_dtype": "int8"},
        {"cache_dtype": "int4"},
    )
    off = [abs(loss_through_cache(model, case_of(corpus, **cache), ids, labels) - exact) for cache in kinds]
    assert off[0] < 1e-6
    assert off[1] < 1e-6
    assert 1e-6 < off[2] < off[3]


@pytest.mark.parametrize(
    "cache",
    [{}, {"cache_dtype": "int4", "quant_group": 8}, {"cache_dtype": "fp8"}, {"cache_dtype": "int8", "page_tokens": 4}],
)
def test_a_text_read_in_one_pass_a_token_in_the_way_of_prompts_has_the_same_loss(
    corpus: Path, model: Decoder, cache: dict[str, Any]
) -> None:
    """A prompt's tokens read each other as the cache holds them, so a passage's last logits are those of its tokens one
    by one."""
    case = case_of(corpus, **cache)
    ids, labels = (part[:2, :10] for part in held_out_text(case, CPU))
    losses = []
    for tokens in range(1, 11):
        fresh = build_cache(case_of(corpus, serving={"new_tokens": 6}, **cache), CPU)
        read = ids[:, :tokens].repeat(2, 1)  # the case's four sequences
        with through(model, fresh), torch.no_grad():
            logits = next_logits(model, fresh, read, torch.arange(tokens).expand(4, -1))
        losses.append(F.cross_entropy(logits[:2], labels[:, tokens - 1]))
    assert loss_through_cache(model, case, ids, labels) == pytest.approx(torch.stack(losses).mean().item(), abs=1e-6)


def test_a_window_costs_what_the_same_model_loses_with_a_window_of_its_own(corpus: Path, model: Decoder) -> None:
    own = MODEL | {"window": 6}
    windowed = Decoder(case_of(corpus, model=own).model)
    windowed.load_state_dict(model.state_dict())
    ids, labels = held_out_text(case_of(corpus), CPU)
    without = loss_without_cache(windowed, ids, labels)
    assert without != pytest.approx(loss_without_cache(model, ids, labels), abs=1e-4)
    assert loss_through_cache(model, case_of(corpus, window=6), ids, labels) == pytest.approx(without, abs=1e-6)
    assert loss_through_cache(windowed, case_of(corpus, model=own), ids, labels) == pytest.approx(without, abs=1e-6)
    assert training_case(case_of(corpus, model=own)).workload.seq_len == 6


@pytest.mark.parametrize("form", ["absorbed", "plain"])
def test_latents_cost_nothing_and_their_codes_something(corpus: Path, form: str) -> None:
    latent = MODEL | {"kv_heads": 2, "latent": {"kv_rank": 16, "rope_dim": 8, "nope_dim": 8, "v_dim": 8}}
    case = case_of(corpus, steps=3, model=latent, latent_form=form)
    trained, (ids, labels) = trained_model(case, CPU), held_out_text(case, CPU)
    exact = loss_without_cache(trained, ids, labels)
    assert loss_through_cache(trained, case, ids, labels) == pytest.approx(exact, abs=1e-6)
    codes = case_of(corpus, model=latent, latent_form=form, cache_dtype="int4", quant_group=8)
    assert loss_through_cache(trained, codes, ids, labels) == pytest.approx(exact, abs=1e-3)
    assert loss_through_cache(trained, codes, ids, labels) != exact


def test_cases_that_differ_in_their_caches_share_a_training(corpus: Path) -> None:
    case = case_of(corpus, serving={"sampling": "beam"}, cache_dtype="int4", cache_tokens=20)
    training = training_case(case)
    assert training == training_case(case_of(corpus))
    assert not training.serves
    assert training.workload.seq_len == 24
    served_on_two = case_from(
        case.to_mapping() | {"layout": {"tp": 2}, "cluster": {}, "model": MODEL | {"kv_heads": 2}}
    )
    assert training_case(served_on_two).layout.world_size == 1


def test_a_cache_that_is_too_small_for_the_answers_still_has_room_for_the_text(corpus: Path, model: Decoder) -> None:
    ids, labels = held_out_text(case_of(corpus), CPU)
    small = loss_through_cache(model, case_of(corpus, cache_tokens=18), ids, labels)
    assert small == loss_through_cache(model, case_of(corpus), ids, labels)
    with pytest.raises(SpecError, match="text: 1 token a sequence"):
        loss_through_cache(model, case_of(corpus), ids[:, :1], labels[:, :1])
