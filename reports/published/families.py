"""Rows of parameter counts about encoders, encoder-decoders and mixtures of experts: the specification that each
describes."""

from __future__ import annotations

import re
from dataclasses import replace

from reports.published.answers import CannotModel
from suite.models import PRESETS
from suite.models.bert import BertSpec
from suite.models.decoder import DecoderSpec
from suite.models.encoder_decoder import Feed
from suite.models.experts import Balance, Experts, Scoring
from suite.models.latent_shape import Latent
from suite.models.t5 import T5Spec
from suite.published import PublishedRow, UnreadableCell

_STACKS = re.compile(r"(\d+)\+(\d+)", flags=re.ASCII)
#: names that have BERT's in them and are other models
_NOT_BERT = re.compile(r"roberta|distil|albert|deberta|mobilebert|modernbert|squeezebert", flags=re.IGNORECASE)
#: what the notes of a row call the router's biases
_ROUTER_BIAS = ("correction bias", "router bias")


def bert_of(row: PublishedRow) -> tuple[BertSpec, tuple[str, ...]]:
    """The BERT that a row describes, and what the row leaves open. CannotModel for other encoders."""
    name = row.text("model")
    if "bert" not in name.lower() or _NOT_BERT.search(name):
        raise CannotModel(f"{name or 'unnamed'}: an encoder of another form than BERT's")
    if row.flag("linear_bias") is False or row.text("norm") not in ("", "LayerNorm"):
        raise CannotModel("an encoder of another form than BERT's: biases and LayerNorm everywhere")
    hidden = row.need("hidden")
    spec = BertSpec(
        layers=row.need("layers"), hidden=hidden, heads=row.need("heads"), ffn=row.count("ffn") or 4 * hidden,
        vocab=row.need("vocab"), max_positions=row.need("max_pos"), name=name,
    )  # fmt: skip
    return spec, ("two segments, and the pooler: a backbone without the pretraining heads",)


def t5_of(row: PublishedRow) -> tuple[T5Spec, tuple[str, ...]]:
    """The T5 that a row describes, v1.0 or v1.1. CannotModel for other encoder-decoders."""
    form, tied = row.text("act").lower(), row.flag("tied")
    if not row.says("norm", "RMSNorm") or row.text("linear_bias") not in ("", "0"):
        raise CannotModel(f"{row.text('model')}: an encoder-decoder of another form than T5's (RMSNorm, no biases)")
    feeds = {"relu": Feed.RELU, "geglu": Feed.GATED_GELU, "gated-gelu": Feed.GATED_GELU, "gated gelu": Feed.GATED_GELU}
    if form not in feeds:
        raise CannotModel(f"act {form!r}: T5 has relu (v1.0) or a gated GELU (v1.1)")
    if tied is None:
        raise UnreadableCell("tied is not stated")
    stacks = _STACKS.fullmatch(row.text("layers"))
    if stacks is None:
        raise UnreadableCell(f"layers {row.text('layers')!r} is not an encoder's and a decoder's, as 6+6")
    encoder, decoder = int(stacks[1]), int(stacks[2])
    spec = T5Spec(
        layers=encoder + decoder, encoder_layers=encoder, hidden=row.need("hidden"), heads=row.need("heads"),
        head_dim=row.count("head_dim") or 0, ffn=row.need("ffn"), vocab=row.need("vocab"), feed=feeds[form],
        tied=tied, name=row.text("model") or "unnamed",
    )  # fmt: skip
    return spec, ("32 buckets of relative positions in either stack",)


def with_experts(row: PublishedRow, bare: DecoderSpec) -> tuple[DecoderSpec, tuple[str, ...]]:
    """The decoder with the row's experts and latent attention. How many of its first blocks are dense no column says:
    none without shared experts, as Mixtral; else as in the preset of the same shape. CannotModel where there is none.
    """
    shared = row.count("moe_shared") or 0
    has_bias = row.says("notes", *_ROUTER_BIAS)
    experts = Experts(
        row.need("moe_experts"), row.need("moe_topk"), row.need("moe_ffn"), shared=shared,
        scoring=Scoring.SIGMOID if has_bias else Scoring.SOFTMAX, balance=Balance.BIAS if has_bias else Balance.NONE,
    )  # fmt: skip
    latent = _latent(row)
    spec = replace(bare, latent=latent, head_dim=0 if latent else bare.head_dim, experts=experts)
    if not shared and spec.latent is None:
        return spec, ("experts in every block: the row says of no dense ones",)
    known = next((found for found in PRESETS.values() if _shape(found) == _shape(spec)), None)
    if not isinstance(known, DecoderSpec):
        raise CannotModel("how many of its first blocks are dense is not stated, and no preset has its shape")
    said = f"first {known.dense_layers} of its blocks dense, as in the released configuration of {known.name}"
    return replace(spec, dense_layers=known.dense_layers), (f"{said}: the row has no column for it",)


def _latent(row: PublishedRow) -> Latent | None:
    rank = row.count("mla_kv_lora")
    if not rank:
        return None
    return Latent(
        rank, row.need("mla_rope"), row.need("mla_nope"), row.need("mla_v"), q_rank=row.count("mla_q_lora") or 0
    )


def _shape(spec: object) -> tuple[object, ...]:
    """What makes two decoders with experts the same but for routing and dense blocks."""
    if not isinstance(spec, DecoderSpec) or spec.experts is None:
        return ()
    experts = spec.experts
    return (
        spec.layers, spec.hidden, spec.heads, spec.ffn, spec.vocab, spec.latent,
        experts.count, experts.top_k, experts.ffn, experts.shared,
    )  # fmt: skip
