"""Rows of parameters beyond dense decoders: what the columns say, what they leave open, what is refused."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from reports.published.answers import CannotModel
from reports.published.parameters import predict_parameters
from suite.published import Figure, PublishedRow, TableKind, UnreadableCell

pytestmark = pytest.mark.unit

MIXTURE = {
    "model": "a", "params": "1", "arch": "decoder", "layers": "2", "hidden": "8", "ffn": "16", "heads": "2",
    "vocab": "10", "tied": "0", "norm": "RMSNorm x2/layer", "act": "swiglu", "moe_experts": "4", "moe_topk": "2",
    "moe_ffn": "16", "active_params": "1,234 (without the head 1,154)",
}  # fmt: skip
BERT = {
    "model": "bert-tiny", "params": "1", "arch": "encoder", "layers": "2", "hidden": "8", "ffn": "32", "heads": "2",
    "vocab": "10", "max_pos": "16", "linear_bias": "1",
}  # fmt: skip
T5 = {
    "model": "t5", "params": "1", "arch": "encoder-decoder", "layers": "1+2", "hidden": "8", "ffn": "16", "heads": "2",
    "head_dim": "4", "vocab": "200", "tied": "1", "linear_bias": "0", "norm": "RMSNorm", "act": "relu",
}  # fmt: skip


def row(base: dict[str, str], **cells: str) -> PublishedRow:
    return PublishedRow(TableKind.PARAMETERS, "x-1", MappingProxyType({**base, **cells}))


def test_a_mixture_by_hand_and_what_a_token_uses_of_it() -> None:
    total, active = row(MIXTURE).figures
    assert (active.quantity, active.published) == ("active_parameters", 1234)
    attention, expert, router, norms = 4 * 8 * 8, 3 * 8 * 16, 4 * 8, 2 * 8
    rest = 2 * (attention + router + norms) + 8 + 2 * 10 * 8
    assert predict_parameters(total).value == rest + 2 * 4 * expert
    assert predict_parameters(active).value == rest + 2 * 2 * expert
    assert row(MIXTURE, active_params="").figures == (row(MIXTURE, active_params=""),)
    assert active.figure is Figure.ACTIVE


def test_a_bert_is_the_textbooks() -> None:
    """(V + P + 2 + 2) h + L (12 h^2 + 13 h) + h^2 + h, without the pretraining heads."""
    assert predict_parameters(row(BERT)).value == (10 + 16 + 4) * 8 + 2 * (12 * 64 + 13 * 8) + 72


def test_a_t5_by_hand() -> None:
    """An encoder block and two of the decoder; 32 buckets for 2 heads in either stack; a norm before each sub-block and
    after each stack."""
    attention, mlp = 4 * 8 * 8, 2 * 8 * 16
    blocks = attention + mlp + 2 * 8 + 2 * (2 * attention + mlp + 3 * 8)
    assert predict_parameters(row(T5)).value == 200 * 8 + blocks + 2 * 32 * 2 + 2 * 8
    gated = predict_parameters(row(T5, act="geglu", tied="0")).value
    assert gated == 2 * 200 * 8 + blocks + 3 * 8 * 16 + 2 * 32 * 2 + 2 * 8


@pytest.mark.parametrize(
    ("base", "cells", "words"),
    [
        (MIXTURE, {"moe_shared": "1"}, "how many of its first blocks are dense is not stated"),
        (MIXTURE, {"qk_norm": "1"}, "norms of queries and keys"),
        (MIXTURE, {"linear_bias": "1"}, "biases with RMSNorm"),
        (BERT, {"model": "roberta-base"}, "roberta-base: an encoder of another form"),
        (T5, {"act": "swiglu"}, "act 'swiglu': T5 has relu"),
        (T5, {"norm": "LayerNorm"}, "of another form than T5's"),
        (BERT, {"arch": "CNN"}, "convolutional network: no family here"),
    ],
)
def test_what_no_family_has_is_skipped_with_the_reason(base: dict[str, str], cells: dict[str, str], words: str) -> None:
    with pytest.raises(CannotModel) as reason:
        predict_parameters(row(base, **cells))
    assert words in str(reason.value)


def test_a_cell_that_is_needed_is_named() -> None:
    with pytest.raises(UnreadableCell, match="layers '3' is not an encoder's and a decoder's"):
        predict_parameters(row(T5, layers="3"))
    with pytest.raises(UnreadableCell, match="moe_topk is not stated"):
        predict_parameters(row(MIXTURE, moe_topk=""))
