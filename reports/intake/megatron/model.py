"""The model that Megatron-LM's arguments describe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from reports.intake.megatron.experts import experts_of
from reports.intake.megatron.settings import Settings
from suite.models.decoder import Activation, DecoderSpec, Norm, Position, RopeScaling
from suite.models.latent_shape import Latent
from suite.models.presets import GPT2_VOCAB, LLAMA_VOCAB, PRESETS
from suite.parse import SpecError, require, shown, to_mapping

#: what these tokenizers have, whatever file they read
VOCABULARIES = {"GPT2BPETokenizer": GPT2_VOCAB, "Llama2Tokenizer": LLAMA_VOCAB}
#: settings that make another model than a decoder of equal, dense blocks, with what it would be
REFUSED = {
    "hybrid_layer_pattern": "layers of several kinds, which no family here has",
    "hybrid_override_pattern": "layers of several kinds, which no family here has",
    "heterogeneous_layers_config_path": "layers of several sizes, which no family here has",
    "experimental_attention_variant": "another attention, which no family here has",
    "spec": "a layer specification of its own, which is not read",
}
#: Llama 3.1's rule as --use-rope-scaling fixes it
LOW, HIGH, ORIGINAL = 1.0, 4.0, 8192


def model_of(settings: Settings) -> dict[str, Any]:
    """The model as `model_from` takes it: under a preset's name where it is one. SpecError for a model of no family."""
    for name, what in REFUSED.items():
        if settings.says(name):
            raise SpecError(f"{settings.given[name].line}: {what}; give a dense decoder's arguments")
    layers, hidden = settings.whole("num_layers"), settings.whole("hidden_size")
    heads = settings.whole("num_attention_heads")
    is_gated = settings.is_on("swiglu") or settings.is_on("quick_geglu")
    latent = _latent(settings)
    bias = settings.is_on("add_bias_linear")
    sizes: dict[str, Any] = {
        "ffn": _ffn(settings, hidden, is_gated),
        "max_positions": settings.whole("max_position_embeddings"),
        "kv_heads": 0 if latent else _groups(settings, heads),
        "head_dim": 0 if latent else settings.whole("kv_channels", max(hidden // heads, 1)),
    }
    spec = DecoderSpec(
        layers=layers, hidden=hidden, heads=heads, **sizes, vocab=1,
        norm=_norm(settings), norm_eps=settings.share("layernorm_epsilon"),
        activation=Activation.SWIGLU if is_gated else Activation.GELU,
        bias=bias and latent is None, qkv_bias=settings.is_on("add_qkv_bias") and not bias,
        tied=not settings.is_on("untie_embeddings_and_output_weights"), dropout=settings.share("hidden_dropout"),
        window=_window(settings), latent=latent, **_positions(settings), **experts_of(settings, layers, sizes["ffn"]),
    )  # fmt: skip
    _leave(settings, spec, latent is not None and bias)
    return to_mapping(_named(replace(spec, vocab=_vocabulary(settings, spec))))


def _groups(settings: Settings, heads: int) -> int:
    return settings.whole("num_query_groups") if settings.is_on("group_query_attention") else heads


def _ffn(settings: Settings, hidden: int, is_gated: bool) -> int:
    """Megatron-LM's default: 4 h, of gated MLPs two thirds of it in whole 64s."""
    return settings.whole("ffn_hidden_size", int(8 * hidden / 3 / 64) * 64 if is_gated else 4 * hidden)


def _norm(settings: Settings) -> Norm:
    return Norm.RMSNORM if settings.word("normalization") == "RMSNorm" else Norm.LAYERNORM


def _latent(settings: Settings) -> Latent | None:
    if not settings.is_on("multi_latent_attention"):
        return None
    for name in ("qk_layernorm", "rope_type", "apply_rope_fusion", "kv_channels"):
        settings.taken.add(name)
    return Latent(
        kv_rank=settings.whole("kv_lora_rank"), rope_dim=settings.whole("qk_pos_emb_head_dim"),
        nope_dim=settings.whole("qk_head_dim"), v_dim=settings.whole("v_head_dim"),
        q_rank=settings.whole("q_lora_rank", 0),
    )  # fmt: skip


def _window(settings: Settings) -> int | None:
    """Tokens that a query sees: those before it, and its own."""
    text = settings.text("window_size")
    if text is None:
        return None
    parts = [part.strip() for part in text.strip("()[]").replace(" ", ",").split(",") if part.strip()]
    require(
        len(parts) == 2 and parts[0].isdigit() and parts[1] in ("0", "-1"),
        f"--window-size: {shown(text)} is not modelled; accepted: the tokens before a query, then 0, as in 4095,0",
    )
    return int(parts[0]) + 1


def _positions(settings: Settings) -> dict[str, Any]:
    kind = settings.word("position_embedding_type")
    is_rope = kind != "learned_absolute" or settings.is_on("use_rotary_position_embeddings")
    settings.taken |= {"add_position_embedding", "use_rotary_position_embeddings"}
    if not is_rope:
        return {"position": Position.LEARNED}
    if kind not in ("rope", "learned_absolute"):
        settings.leave("position_embedding_type", "taken as rope")
    scaling = None
    if settings.is_on("use_rope_scaling"):
        scaling = RopeScaling(settings.share("rope_scaling_factor"), LOW, HIGH, ORIGINAL)
    return {
        "position": Position.ROPE, "rope_theta": settings.share("rotary_base"),
        "rope_fraction": settings.share("rotary_percent"), "rope_scaling": scaling,
    }  # fmt: skip


def _leave(settings: Settings, spec: DecoderSpec, has_latent_bias: bool) -> None:
    """List what of the model is another one here."""
    if settings.share("attention_dropout") > 0:
        settings.leave("attention_dropout", "attention's probabilities are not dropped out here")
    if settings.is_on("squared_relu"):
        settings.leave("squared_relu", "taken as gelu, which has the same matrices")
    if settings.is_on("quick_geglu"):
        settings.leave("quick_geglu", "taken as swiglu, which has the same matrices")
    if has_latent_bias:
        settings.leave("add_bias_linear", "latent attention's blocks have no biases here")
    if spec.norm is Norm.LAYERNORM and not spec.bias:
        settings.leave("normalization", "LayerNorm without a bias, which Megatron-LM's has")


def _vocabulary(settings: Settings, spec: DecoderSpec) -> int:
    """Rows of the embedding: as given, else of a tokenizer that is always as large, else of the preset that has this
    shape. SpecError where a file that is not read decides it."""
    tp, multiple = settings.whole("tensor_model_parallel_size"), settings.whole("make_vocab_size_divisible_by")
    kind = settings.text("tokenizer_type")
    if settings.says("padded_vocab_size"):
        settings.taken.add("vocab_size")
        return settings.whole("padded_vocab_size")
    vocab = int(settings.number("vocab_size") or 0)
    if not vocab:
        vocab, why = VOCABULARIES.get(kind or "", 0), f"the tokens of {kind}"
        if settings.says("merge_file"):
            vocab, why = GPT2_VOCAB, "GPT-2's, whose files --vocab-file and --merge-file name"
        shapes = {item.name: item.vocab for item in PRESETS.values() if _shape(item) == _shape(spec)}
        if not vocab and len(set(shapes.values())) == 1:
            vocab, why = next(iter(shapes.values())), f"{next(iter(shapes))}'s, which has this shape"
        require(vocab > 0, f"--vocab-size: missing, and the files of {kind or 'a tokenizer'} are not read; add it")
        settings.assumed.append(f"model.vocab: {vocab}, {why}")
    rows = -(-vocab // (multiple * tp)) * multiple * tp
    if rows != vocab:
        settings.assumed.append(
            f"model.vocab: {vocab} as given; Megatron-LM pads embedding and head to {rows} rows (--make-vocab-size-"
            f"divisible-by {multiple} on {tp} tensor-parallel ranks)"
        )
    return vocab


def _shape(spec: DecoderSpec) -> tuple[int, ...]:
    return spec.layers, spec.hidden, spec.heads, spec.kv_heads, spec.ffn


def _named(spec: DecoderSpec) -> DecoderSpec:
    """The preset that is the same model, else the model as it is."""
    return next((item for item in PRESETS.values() if replace(item, name=spec.name) == spec), spec)
