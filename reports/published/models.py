"""The decoder that a row of a run describes: GPT-2's form or LLaMA's, by the activation of its MLP."""

from __future__ import annotations

import re
from dataclasses import dataclass

from reports.published.answers import CannotModel
from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.published import PublishedRow

#: GPT-2's tokenizer, which Megatron's GPT examples train with
GPT2_VOCAB = 50257
#: a SentencePiece model's, as the launch script of zero-bubble's repository has it (examples/pretrain_zero_bubble.sh);
#: its labels 6.2B and 14.6B come out with 25,500 to 33,400 rows, counted once
ZERO_BUBBLE_VOCAB = 32000
#: words that name another family, where no other letter stands before them: GPT-530B is no T5
_OTHER_FAMILY = re.compile(r"bert|(?<![a-z])(t5|vit|deit|clip|llava|mamba|hybrid|retro|whisper|resnet|multimodal)")
_ABOUT = re.compile(r"~(\d+)k", flags=re.ASCII)


@dataclass(frozen=True)
class Described:
    """A model, and what the row left open."""

    spec: DecoderSpec
    assumed: tuple[str, ...]


def refuse_what_no_run_models(row: PublishedRow) -> None:
    """Refuse experts, adapters, quantized weights, offloading and other families of models."""
    if row.text("moe"):
        raise CannotModel("mixture of experts in Megatron-LM or NeMo: their kernels and dispatchers are not modelled")
    if row.text("peft"):
        raise CannotModel(f"{row.text('peft').partition(' ')[0]}: training a part of the parameters is not modelled")
    if row.text("offload") not in ("", "none"):
        raise CannotModel(f"offload {row.text('offload')!r}: not modelled for this source yet")
    if _OTHER_FAMILY.search(row.text("model").lower()):
        raise CannotModel(f"{row.text('model')}: not a decoder; runs of other families are not modelled")
    if row.says("precision", "nf4", "int4", "int8", "gptq", "awq"):
        raise CannotModel(f"precision {row.text('precision')!r}: quantized weights are not modelled yet")


def model_of(row: PublishedRow, tied_if_unstated: bool = True) -> Described:
    """The model's shape by the row's columns. CannotModel where the MLP's form is not stated."""
    assumed: list[str] = []
    layers, hidden, heads = (row.need(name) for name in ("layers", "hidden", "heads"))
    kv_heads, head_dim = row.count("kv_heads") or 0, row.count("head_dim") or 0
    seq_len, form = row.need("seq_len"), row.text("act").lower()
    tied = row.flag("tied")
    vocab = _vocab(row, assumed)
    if form.startswith("swiglu"):
        if row.says("model", "qwen3"):
            assumed.append("norms of queries and keys left out")
        return Described(
            DecoderSpec(
                layers=layers, hidden=hidden, heads=heads, ffn=row.need("ffn"), kv_heads=kv_heads, head_dim=head_dim,
                vocab=vocab, max_positions=seq_len, tied=bool(tied), name=row.text("model") or "unnamed",
                qkv_bias=row.says("model", "qwen") and not row.says("model", "qwen3"),
            ),
            tuple(assumed),
        )  # fmt: skip
    if not form.startswith("gelu"):
        raise CannotModel(f"act {row.text('act')!r}: the MLP's form is not stated or not modelled")
    if tied is None:
        assumed.append("head and embedding tied" if tied_if_unstated else "head and embedding apart")
    assumed.append("GPT-2's form: LayerNorm, biases, learned positions")
    return Described(
        DecoderSpec(
            layers=layers, hidden=hidden, heads=heads, ffn=row.count("ffn") or 4 * hidden, kv_heads=kv_heads,
            head_dim=head_dim, vocab=vocab, max_positions=seq_len,
            tied=tied_if_unstated if tied is None else tied, norm=Norm.LAYERNORM, activation=Activation.GELU,
            position=Position.LEARNED, bias=True, name=row.text("model") or "unnamed",
        ),
        tuple(assumed),
    )  # fmt: skip


def _vocab(row: PublishedRow, assumed: list[str]) -> int:
    """The vocabulary as stated; '~250k' is taken at its word, and a GPT's that is not stated is GPT-2's."""
    about = _ABOUT.fullmatch(row.text("vocab"))
    if about:
        assumed.append(f"vocabulary {row.text('vocab')} taken as {about[1]},000")
        return int(about[1]) * 1000
    if not row.text("vocab") and row.family == "zero_bubble":
        assumed.append(f"vocabulary {ZERO_BUBBLE_VOCAB:,}: the label 14.6B comes out with it, not with GPT-2's")
        return ZERO_BUBBLE_VOCAB
    if not row.text("vocab") and row.says("model", "gpt"):
        assumed.append(f"vocabulary of GPT-2, {GPT2_VOCAB:,}")
        return GPT2_VOCAB
    return row.need("vocab")
