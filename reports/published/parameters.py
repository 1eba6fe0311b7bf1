"""Rows about parameter counts: a decoder's by our own specification and ledger, the rest skipped with the reason."""

from __future__ import annotations

from dataclasses import replace

from reports.published.answers import CannotModel, Prediction
from suite.layout import Recompute
from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.models.ledgers import ledger_of
from suite.published import PublishedRow, UnreadableCell
from suite.spec import Workload
from suite.tape import FP32, Backend

#: OPT's table of positions has two rows more than it has positions (transformers, OPTLearnedPositionalEmbedding)
_OFFSET_ROWS = "(+2 offset rows)"


def predict_parameters(row: PublishedRow) -> Prediction:
    """The count of a decoder's parameters."""
    if row.text("arch") != "decoder" or row.text("moe_experts"):
        raise CannotModel(f"{_kind(row)}: not modelled yet")
    spec, assumed = decoder_of(row)
    return Prediction(count_parameters(spec), "sum of the ledger's weights", assumed)


def count_parameters(spec: DecoderSpec) -> int:
    """Parameters of a model, by its operator ledger."""
    return ledger_of(spec, Workload(seq_len=1), Recompute(), FP32, Backend.CUDA).parameters


def _kind(row: PublishedRow) -> str:
    if row.text("moe_experts"):
        return "mixture of experts" + (" with latent attention" if row.text("mla_kv_lora") else "")
    return {
        "ViT": "vision transformer", "VLM": "vision and language", "CNN": "convolutional network",
    }.get(row.text("arch"), row.text("arch") or "an architecture that is not stated")  # fmt: skip


def decoder_of(row: PublishedRow) -> tuple[DecoderSpec, tuple[str, ...]]:
    """The decoder that a row describes, and what the row leaves open. GPT-2's form has biases and learned positions,
    LLaMA's RMSNorm and a gated MLP; CannotModel for anything between or beyond."""
    bare = DecoderSpec(
        layers=row.need("layers"), hidden=row.need("hidden"), heads=row.need("heads"), vocab=row.need("vocab"),
        kv_heads=row.count("kv_heads") or 0, head_dim=row.count("head_dim") or 0, name=row.text("model") or "unnamed",
    )  # fmt: skip
    tied = row.flag("tied")
    if tied is None:
        raise UnreadableCell("tied is not stated")
    assumed: tuple[str, ...] = ()
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
