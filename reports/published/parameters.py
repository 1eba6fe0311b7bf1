"""Rows about parameter counts: a model's by our own specification and ledger, the rest skipped with the reason."""

from __future__ import annotations

from dataclasses import replace

from reports.counts import parameters_of
from reports.published.answers import CannotModel, Prediction
from reports.published.families import bert_of, t5_of, with_experts
from suite.layout import Recompute
from suite.models import ModelSpec
from suite.models.bert_ledger import backbone_parameters
from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.models.experts_layers import active_parameters, router_biases
from suite.models.ledgers import ledger_of
from suite.operators import Ledger
from suite.published import Figure, PublishedRow, UnreadableCell
from suite.spec import Workload
from suite.tape import FP32, Backend

#: OPT's table of positions has two rows more than it has positions (transformers, OPTLearnedPositionalEmbedding)
_OFFSET_ROWS = "(+2 offset rows)"


def predict_parameters(row: PublishedRow) -> Prediction:
    """The count of a model's parameters, or of those that a token uses. CannotModel for families that are not here."""
    spec, count, assumed = _counted(row)
    if row.figure is Figure.ACTIVE:
        basis = "sum of the ledger's weights, without the experts that a token does not go to"
        return Prediction(active_parameters(spec, count), basis, assumed)
    return Prediction(count, "sum of the ledger's weights", assumed)


def _ledger(spec: ModelSpec) -> Ledger:
    return ledger_of(spec, Workload(seq_len=8), Recompute(), FP32, Backend.CUDA)


def _counted(row: PublishedRow) -> tuple[ModelSpec, int, tuple[str, ...]]:
    """(the model, its parameters as the row counts them, what the row leaves open)."""
    arch = row.text("arch")
    if arch == "encoder":
        bert, assumed = bert_of(row)
        return bert, backbone_parameters(_ledger(bert)), assumed
    if arch == "encoder-decoder":
        t5, assumed = t5_of(row)
        return t5, parameters_of(t5), assumed
    if arch not in ("decoder", "decoder MoE", "decoder MLA MoE", "decoder MLA"):
        raise CannotModel(f"{_kind(row)}: no family here")
    spec, assumed = decoder_of(row)
    biases = router_biases(spec)
    if biases:
        assumed = (*assumed, f"the routers' {biases:,} biases counted, as the notes say: buffers here, no parameters")
    return spec, parameters_of(spec) + biases, assumed


def _kind(row: PublishedRow) -> str:
    return {
        "ViT": "vision transformer", "VLM": "vision and language", "CNN": "convolutional network",
    }.get(row.text("arch"), row.text("arch") or "an architecture that is not stated")  # fmt: skip


def decoder_of(row: PublishedRow) -> tuple[DecoderSpec, tuple[str, ...]]:
    """The decoder that a row describes, and what the row leaves open. GPT-2's form has biases and learned positions,
    LLaMA's RMSNorm and a gated MLP, a mixture's experts are gated MLPs; CannotModel for anything between or beyond."""
    bare = DecoderSpec(
        layers=row.need("layers"), hidden=row.need("hidden"), heads=row.need("heads"), vocab=row.need("vocab"),
        kv_heads=row.count("kv_heads") or 0, head_dim=row.count("head_dim") or 0, name=row.text("model") or "unnamed",
    )  # fmt: skip
    tied = row.flag("tied")
    if tied is None:
        raise UnreadableCell("tied is not stated")
    assumed: tuple[str, ...] = ()
    if row.text("moe_experts"):
        _llama_form(row)
        return with_experts(row, replace(bare, ffn=row.count("ffn") or row.need("moe_ffn"), tied=tied))
    if row.says("norm", "RMSNorm") and row.text("act") in ("swiglu", "geglu"):
        _llama_form(row)
        if row.text("act") == "geglu":
            assumed = ("GeGLU's matrices counted as SwiGLU's",)
        return replace(bare, ffn=row.need("ffn"), tied=tied, qkv_bias=bool(row.flag("qkv_bias"))), assumed
    return _gpt_form(row, replace(bare, tied=tied))


def _bias(row: PublishedRow) -> bool | None:
    text = row.text("linear_bias")
    if text not in ("", "0", "1"):
        raise CannotModel(f"linear_bias {text!r}: biases in a part of the linears are not modelled")
    return None if not text else text == "1"


def _llama_form(row: PublishedRow) -> None:
    """Refuse what LLaMA's form here does not have."""
    if row.flag("qk_norm"):
        raise CannotModel("norms of queries and keys: not modelled yet")
    if "x4" in row.text("norm"):
        raise CannotModel("four norms a layer: not modelled yet")
    if _bias(row):
        raise CannotModel("biases with RMSNorm: not modelled yet")


def _gpt_form(row: PublishedRow, bare: DecoderSpec) -> tuple[DecoderSpec, tuple[str, ...]]:
    notes, positions = row.text("notes"), row.text("max_pos")
    if row.text("act") not in ("", "gelu", "relu") or _bias(row) is not True:
        raise CannotModel(f"neither GPT-2's form nor LLaMA's{': ' + notes if notes else ''}: not modelled yet")
    if row.says("notes", "proj", "post-norm", "post-LN"):
        raise CannotModel(f"{notes}: not modelled yet")
    if not positions:
        raise CannotModel(f"no learned positions stated{' (' + notes + ')' if notes else ''}: not GPT-2's form")
    is_opt = positions.endswith(_OFFSET_ROWS)
    rows = positions.removesuffix(_OFFSET_ROWS)
    if not rows.isdecimal():
        raise UnreadableCell(f"max_pos {positions!r} is not a whole number")
    assumed = () if row.text("norm") else ("LayerNorm and GELU's two matrices: not stated",)
    return replace(
        bare, ffn=row.count("ffn") or 4 * bare.hidden, max_positions=int(rows) + (2 if is_opt else 0),
        norm=Norm.LAYERNORM, activation=Activation.GELU, position=Position.LEARNED, bias=True,
    ), assumed  # fmt: skip
