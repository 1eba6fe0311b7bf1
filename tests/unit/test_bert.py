"""BERT: counts by its textbook formula, its ledger beside its module, and transformers' logits and losses."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from suite.case import Case, case_from
from suite.layout import Recompute
from suite.models import PRESETS, model_from
from suite.models.bert import BertSpec
from suite.models.bert_ledger import backbone_parameters
from suite.models.bert_module import Bert
from suite.models.ledgers import ledger_of
from suite.operators import Ledger
from suite.parse import SpecError
from suite.spec import AttentionKernel, LossKernel, Workload
from suite.tape import FP32, Backend

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import BertConfig, BertForPreTraining

pytestmark = pytest.mark.unit

SPEC = BertSpec(layers=2, hidden=32, heads=4, ffn=72, vocab=61, max_positions=24)
IGNORED = -100
#: backbones without pretraining heads: params.csv's keras-hub rows, and google-research/bert's uncased checkpoints
PUBLISHED = {
    "bert-base-cased": 108_310_272,
    "bert-base-multilingual": 177_853_440,
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
}


def ledger(spec: BertSpec) -> Ledger:
    """The ledger of a short step."""
    return ledger_of(spec, Workload(seq_len=8), Recompute(), FP32, Backend.CPU, 1)


def preset(name: str) -> BertSpec:
    """A preset, which has to be BERT's."""
    spec = PRESETS[name]
    assert isinstance(spec, BertSpec)
    return spec


def test_backbones_count_the_textbook_formula_and_what_was_published() -> None:
    for name, published in PUBLISHED.items():
        spec = preset(name)
        d = spec.hidden
        assert (spec.vocab + 516) * d + spec.layers * (12 * d**2 + 13 * d) + d**2 + d == published
        assert backbone_parameters(ledger(spec)) == published


def test_heads_on_top_are_transform_its_norm_a_bias_a_token_and_the_pair() -> None:
    spec = preset("bert-base")
    d = spec.hidden
    on_top = (d**2 + d) + 2 * d + spec.vocab + (2 * d + 2)
    assert ledger(spec).parameters == PUBLISHED["bert-base"] + on_top


@pytest.mark.parametrize("name", ["bert-1m", "bert-large"])
def test_the_ledger_has_the_modules_parameters(name: str) -> None:
    spec = preset(name)
    with torch.device("meta"):
        module = Bert(spec)
    found = {
        placed.weight_name(weight): weight.values
        for placed in ledger(spec).segments
        for weight in placed.segment.weights
        if not weight.tied_to
    }
    assert found == {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert module.head.weight is module.embedding.word.weight


# --- transformers' model -------------------------------------------------------------------------------------------

NAMES = (
    (r"^embedding\.word", "bert.embeddings.word_embeddings"),
    (r"^embedding\.positions", "bert.embeddings.position_embeddings"),
    (r"^embedding\.segments", "bert.embeddings.token_type_embeddings"),
    (r"^embedding\.norm", "bert.embeddings.LayerNorm"),
    (r"^blocks\.(\d+)", r"bert.encoder.layer.\1"),
    (r"attention\.wq", "attention.self.query"),
    (r"attention\.wk", "attention.self.key"),
    (r"attention\.wv", "attention.self.value"),
    (r"attention\.wo", "attention.output.dense"),
    (r"attention_norm", "attention.output.LayerNorm"),
    (r"mlp\.up", "intermediate.dense"),
    (r"mlp\.down", "output.dense"),
    (r"mlp_norm", "output.LayerNorm"),
    (r"^pooler", "bert.pooler.dense"),
    (r"^next_sentence", "cls.seq_relationship"),
    (r"^transform", "cls.predictions.transform.dense"),
    (r"^norm", "cls.predictions.transform.LayerNorm"),
    (r"^head", "cls.predictions.decoder"),
)


def reference_name(name: str) -> str:
    """A parameter's name in transformers' model."""
    for pattern, other in NAMES:
        name = re.sub(pattern, other, name)
    return name


def reference(spec: BertSpec, ours: Bert) -> BertForPreTraining:
    """transformers' model with our weights."""
    config = BertConfig(
        vocab_size=spec.vocab, hidden_size=spec.hidden, num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads, intermediate_size=spec.ffn, max_position_embeddings=spec.max_positions,
        type_vocab_size=spec.segments, layer_norm_eps=spec.norm_eps, hidden_act="gelu", hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, attn_implementation="eager", pad_token_id=None,
    )  # fmt: skip
    theirs = BertForPreTraining(config).eval()
    state = {reference_name(name): tensor for name, tensor in ours.state_dict().items()}
    state["cls.predictions.bias"] = state["cls.predictions.decoder.bias"]
    theirs.load_state_dict(state)
    return theirs


def batch(spec: BertSpec) -> dict[str, Tensor]:
    """Three pairs, two of them padded, a few of their tokens asked for."""
    draw = torch.Generator().manual_seed(3)
    lengths = torch.tensor([24, 17, 5])
    ids = torch.randint(spec.vocab, (3, 24), generator=draw)
    is_text = torch.arange(24) < lengths.unsqueeze(1)
    is_asked = (torch.rand(3, 24, generator=draw) < 0.3) & is_text
    return {
        "ids": ids,
        "labels": torch.randint(spec.vocab, (3, 24), generator=draw).where(is_asked, torch.tensor(IGNORED)),
        "segments": (torch.arange(24) > lengths.unsqueeze(1) // 2).long() * is_text,
        "lengths": lengths,
        "next_labels": torch.tensor([0, 1, 1]),
    }


def model(spec: BertSpec, **choices: Any) -> Bert:
    """A model with weights that matter: biases and norms are drawn too."""
    torch.manual_seed(1)
    built = Bert(spec, **choices)
    built.reset_parameters()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return built


@pytest.mark.parametrize("attention", AttentionKernel)
@pytest.mark.parametrize("loss", LossKernel)
def test_logits_and_loss_are_those_of_transformers_padding_included(
    attention: AttentionKernel, loss: LossKernel
) -> None:
    ours = model(SPEC, kernel=attention, loss=loss)
    theirs = reference(SPEC, ours)
    given = batch(SPEC)
    asked, pairs = given.pop("labels"), given.pop("next_labels")
    is_text = torch.arange(24) < given["lengths"].unsqueeze(1)
    answer = theirs(
        input_ids=given["ids"], attention_mask=is_text.long(), token_type_ids=given["segments"], labels=asked,
        next_sentence_label=pairs,
    )  # fmt: skip
    mine = ours(**given)
    torch.testing.assert_close(mine.tokens[is_text], answer.prediction_logits[is_text], rtol=0, atol=1e-4)
    torch.testing.assert_close(mine.next_sentence, answer.seq_relationship_logits, rtol=0, atol=1e-4)
    total = ours(labels=asked, next_labels=pairs, **given)
    torch.testing.assert_close(total, answer.loss, rtol=0, atol=1e-4)
    total.backward()
    answer.loss.backward()
    gradients = {reference_name(name): item.grad for name, item in ours.named_parameters()}
    for name, item in theirs.named_parameters():
        if name != "cls.predictions.bias":
            torch.testing.assert_close(gradients[name], item.grad, rtol=1e-4, atol=1e-5, msg=name)


# --- padding, and what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", AttentionKernel)
def test_a_row_of_padding_alone_contributes_nothing(attention: AttentionKernel) -> None:
    built, given = model(SPEC, kernel=attention), batch(SPEC)
    alone = built(**given)
    alone.backward()
    expected = {name: item.grad.clone() for name, item in built.named_parameters()}
    built.zero_grad()
    empty = {name: torch.cat([tensor, torch.zeros_like(tensor[:1])]) for name, tensor in given.items()}
    empty["labels"][-1] = IGNORED
    total = built(**empty)
    total.backward()
    torch.testing.assert_close(total, alone)
    for name, item in built.named_parameters():
        torch.testing.assert_close(item.grad, expected[name], msg=name)


def test_nothing_but_padding_gives_a_loss_of_zero_and_no_gradient() -> None:
    built, given = model(SPEC), batch(SPEC)
    given |= {"lengths": torch.zeros(3, dtype=torch.int64), "labels": torch.full((3, 24), IGNORED)}
    total = built(**given)
    total.backward()
    assert total.item() == 0.0
    assert all((item.grad == 0).all() for item in built.parameters())


def test_padding_is_not_read() -> None:
    built, given = model(SPEC), batch(SPEC)
    before = built(**given)
    given["ids"] = given["ids"].where(torch.arange(24) < given["lengths"].unsqueeze(1), torch.tensor(0))
    torch.testing.assert_close(built(**given), before)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("labels", (3, 23), r"labels: \(3, 23\) with ids \(3, 24\); expected \(3, 24\)"),
        ("segments", (3, 1), r"segments: \(3, 1\) with ids"),
        ("lengths", (2,), r"lengths: \(2,\) with ids \(3, 24\); expected \(3,\)"),
        ("next_labels", (4,), r"next_labels: \(4,\)"),
    ],
)
def test_tensors_of_the_wrong_length_are_refused_in_one_line(name: str, shape: tuple[int, ...], message: str) -> None:
    given = batch(SPEC) | {name: torch.zeros(shape, dtype=torch.int64)}
    with pytest.raises(SpecError, match=f"^{message}"):
        model(SPEC)(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, r"model.heads: hidden\(128\) % heads\(3\) != 0"),
        ({"vocab": 4}, "model.vocab: 4 leaves no token"),
        ({"segments": 1}, "model.segments: must be at least 2"),
        ({"masking": "words"}, "model.masking: .*tokens"),
        ({"kv_heads": 2}, "model.kv_heads: unknown key"),
    ],
)
def test_specifications_that_make_no_model_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        model_from({"family": "bert", **change})


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"pp": 2}, r"layout.pp\(2\) with model.family\(bert\)"),
        ({"cp": 2}, r"layout.cp\(2\) with model.family\(bert\)"),
        (
            {"tp": 2},
            r"layout.tp\(2\), layout.sequence_parallel\(True\) with model.family\(bert\).*sequence_parallel false",
        ),
    ],
)
def test_what_is_built_for_decoders_is_refused_with_a_reason(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        case_from({"model": "bert-1m", "layout": layout})


def test_a_model_of_few_positions_takes_them_as_its_sequence() -> None:
    assert case_from({"model": "bert-base"}).workload.seq_len == 512
    with pytest.raises(SpecError, match="beyond the model's max_positions"):
        Case(replace(SPEC), workload=Workload(seq_len=25))
