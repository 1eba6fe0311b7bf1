"""A Hugging Face config.json -> our specification: gpt2, llama, mistral, qwen2. Without torch, without transformers.

Defaults of left-out fields are those of transformers' configuration classes (5.x). What changes the model and is
not modelled is refused with the field's name, never passed over. Sizes are counts, angles' base is a plain number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from suite.models.decoder import Activation, DecoderSpec, Norm, Position, RopeScaling
from suite.models.hf_fields import Fields, Unfollowed, read_object, shown
from suite.parse import SpecError

#: fields that every family may have and that change nothing of the arithmetic of a training step
_HARMLESS = """
architectures transformers_version torch_dtype dtype name_or_path use_cache initializer_range attn_implementation
bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
output_attentions output_hidden_states output_scores return_dict return_dict_in_generate torchscript
id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class prefix
max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
suppress_tokens begin_suppress_tokens tf_legacy_loss use_bfloat16 is_decoder gradient_checkpointing
tie_last_hidden_states max_sequence_length
"""
HARMLESS = frozenset(_HARMLESS.split())
#: an architecture with another head, or none, is another model
HEADS = ("ForCausalLM", "LMHeadModel")
NAME_LIMIT = 80
_FREQUENCIES = ("linear", "dynamic", "yarn", "longrope")  # other frequencies of the same rotation
_FULL, _SLIDING = "full_attention", "sliding_attention"  # of layer_types


@dataclass(frozen=True)
class HfModel:
    """A specification read from a config.json, and what of the file it does not follow, in words."""

    spec: DecoderSpec
    notices: tuple[str, ...]
    unfollowed: Unfollowed | None = None


def read_hf_config(path: str) -> DecoderSpec:
    """The model that the config.json at `path` describes. SpecError, in one line, for everything it cannot be."""
    return load_hf_config(path).spec


def load_hf_config(path: str, unfollowed: Unfollowed | None = None) -> HfModel:
    """As `read_hf_config`, with the notices: dropout, which training here does without, is the only one so far.

    With `unfollowed`, fields that are not known and those that change numbers alone are listed there instead of
    refused; what would make memory or time wrong is refused still.
    """
    fields = read_object(path, unfollowed)
    model_type = fields.take("model_type", str)
    if model_type not in FAMILIES:
        supported = ", ".join(FAMILIES)
        raise fields.refuse("model_type", f"is not supported; supported: {supported}")
    _check_common(fields)
    settings = FAMILIES[model_type](fields)
    notices = tuple(
        f"{name} {fields.take(name, float)}: training here has no dropout" for name in _DROPOUTS if fields.raw(name)
    )
    fields.close()
    settings["name"] = _name(fields) or f"{model_type}-l{settings['layers']}-h{settings['hidden']}"
    try:
        return HfModel(DecoderSpec(**settings), notices, unfollowed)
    except SpecError as refusal:
        raise SpecError(f"{fields.where}: {refusal}") from None


_DROPOUTS = ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop")


def _check_common(fields: Fields) -> None:
    """What transformers' base class lets any configuration say."""
    fields.skip(HARMLESS)
    fields.only("is_encoder_decoder", False, why="an encoder beside the decoder")
    fields.only("add_cross_attention", False, why="attention to an encoder")
    fields.only("tie_encoder_decoder", False, why="an encoder beside the decoder")
    fields.only("chunk_size_feed_forward", 0, why="an MLP in slices")
    for name, why in (
        ("cross_attention_hidden_size", "attention to an encoder"),
        ("pruned_heads", "heads that differ from layer to layer"),
        ("quantization_config", "quantized weights"),
        ("auto_map", "code of its own"),
        ("per_layer_config", "layers that differ"),
    ):
        fields.none(name, why)
    names = fields.raw("architectures") or []
    if not isinstance(names, list) or not all(str(name).endswith(HEADS) for name in names):
        raise fields.refuse("architectures", f"is not modelled (another head); accepted: names ending in {HEADS[0]}")


def _gpt2(fields: Fields) -> dict[str, Any]:
    """GPT-2: learned positions, LayerNorm, GELU, biases everywhere, tied unless it says otherwise."""
    tanh = ("gelu_new", "gelu_pytorch_tanh")
    fields.only_maths("activation_function", *tanh, alike=("gelu",), why="GELU is its tanh form here")
    fields.only_maths("scale_attn_weights", True, alike=(False,), why="scores are divided by sqrt(head_dim)")
    fields.only_maths("scale_attn_by_inverse_layer_idx", False, alike=(True,), why="scores scaled by their layer")
    fields.only("reorder_and_upcast_attn", False, why="scores computed in fp32")
    fields.skip(("n_ctx", "n_special", "predict_special_tokens"))  # of old files; transformers reads none of them
    fields.skip(f"summary_{part}" for part in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout"))
    hidden = fields.size("n_embd")
    return {
        "layers": fields.size("n_layer"),
        "hidden": hidden,
        "heads": fields.size("n_head"),
        "ffn": fields.size("n_inner", 4 * hidden),
        "vocab": fields.size("vocab_size"),
        "max_positions": fields.size("n_positions"),
        "norm": Norm.LAYERNORM,
        "activation": Activation.GELU,
        "position": Position.LEARNED,
        "bias": True,
        "tied": fields.take("tie_word_embeddings", bool, True),
        "norm_eps": fields.positive("layer_norm_epsilon", 1e-5),
    }


def _llama_form(fields: Fields, kv_heads: int) -> dict[str, Any]:
    """What llama, mistral and qwen2 have in common."""
    gelu = ("gelu", "gelu_pytorch_tanh")
    fields.only_maths("hidden_act", "silu", "swish", alike=gelu, why="the gate is SiLU")
    fields.skip(("pretraining_tp",))  # slices the products, which gives the same sums
    positions = fields.size("max_position_embeddings")
    return {
        "layers": fields.size("num_hidden_layers"),
        "hidden": fields.size("hidden_size"),
        "heads": fields.size("num_attention_heads"),
        "kv_heads": kv_heads,
        "head_dim": fields.size("head_dim", 0),
        "ffn": fields.size("intermediate_size"),
        "vocab": fields.size("vocab_size"),
        "max_positions": positions,
        "tied": fields.take("tie_word_embeddings", bool, False),
        "norm_eps": fields.positive("rms_norm_eps", 1e-6),
        **_rope(fields, positions),
    }


def _llama(fields: Fields) -> dict[str, Any]:
    attention, mlp = (fields.take(f"{part}_bias", bool, False) for part in ("attention", "mlp"))
    if attention is not mlp:
        raise fields.refuse(
            "attention_bias", f"with mlp_bias {mlp} is not modelled (biases in a part of the linears); give both alike"
        )
    kv_heads = fields.size("num_key_value_heads", 0)
    return {**_llama_form(fields, kv_heads), **_window(fields, 0), "bias": attention}


def _mistral(fields: Fields) -> dict[str, Any]:
    # transformers' 4096 stands for a left-out window, but null means none
    window = fields.size("sliding_window", 0 if fields.says_null("sliding_window") else 4096)
    return {**_llama_form(fields, kv_heads=_kv_heads(fields, left_out=8)), **_window(fields, window)}


def _qwen2(fields: Fields) -> dict[str, Any]:
    fields.only("use_mrope", False, why="rotary positions in several dimensions")
    is_used = fields.take("use_sliding_window", bool, False) and not fields.says_null("sliding_window")
    window, first = fields.size("sliding_window", 4096), fields.take("max_window_layers", int, 28)
    form = _llama_form(fields, kv_heads=_kv_heads(fields, left_out=32))
    return {**form, **_window(fields, window if is_used else 0, first), "qkv_bias": True}


def _kv_heads(fields: Fields, left_out: int) -> int:
    """num_key_value_heads: null means as many as heads, and a left-out one means the class's own number."""
    return fields.size("num_key_value_heads", 0 if fields.says_null("num_key_value_heads") else left_out)


def _window(fields: Fields, window: int, first: int = 0) -> dict[str, int | None]:
    """The window of the layers from `first` on, if all layers have it or none: 0 is none, and one of all positions
    hides nothing. `layer_types`, where given, must say the same."""
    layers, positions = fields.size("num_hidden_layers"), fields.size("max_position_embeddings")
    kinds = {str(kind) for kind in fields.take("layer_types", list, [])}
    if not 0 < window < positions:
        if not kinds <= ({_FULL, _SLIDING} if window else {_FULL}):
            raise fields.refuse("layer_types", f"is not modelled; accepted: {_FULL} in every layer")
        return {"window": None}
    if 0 < first < layers:
        raise fields.refuse(
            "max_window_layers", f"of num_hidden_layers({layers}) is not modelled (layers with a window of {window}"
            f" beside layers without); accepted: 0, or at least {layers}"
        )  # fmt: skip
    kind = _SLIDING if first <= 0 else _FULL
    if kinds and kinds != {kind}:
        raise fields.refuse(
            "layer_types", f"beside sliding_window({window}) is not modelled; accepted: {kind} in every layer"
        )
    return {"window": window if first <= 0 else None}


# --- rotary positions ---------------------------------------------------------------------------------------------


def _rope(fields: Fields, positions: int) -> dict[str, Any]:
    """rope_theta beside `rope_scaling` (transformers 4), or both within `rope_parameters` (transformers 5)."""
    if fields.has("rope_scaling") and fields.has("rope_parameters"):
        raise fields.refuse("rope_scaling", "beside rope_parameters: give one of them")
    key = "rope_scaling" if fields.has("rope_scaling") else "rope_parameters"
    inner = Fields(fields.raw(key) or {}, f"{fields.where}: {key}")
    fields.only("partial_rotary_factor", 1.0, 1, why="a head that is rotated in part")
    inner.only("partial_rotary_factor", 1.0, 1, why="a head that is rotated in part")
    outer_theta = fields.positive("rope_theta", 10000.0)
    theta = inner.positive("rope_theta", outer_theta)
    if fields.has("rope_theta") and theta != outer_theta:
        raise fields.refuse("rope_theta", f"beside {key}.rope_theta {theta}: give one of them")
    kind = inner.take("rope_type", str, inner.take("type", str, "default"))
    if kind in _FREQUENCIES and fields.unfollowed is not None:
        said = f"{key} {shown(fields.raw(key))}: rotation has the default frequencies; sizes and work are the same"
        fields.unfollowed.maths.append(said)
        return {"rope_theta": theta, "rope_scaling": None}
    if kind not in ("default", "llama3"):
        raise SpecError(
            f"{inner.where}: rope_type: {shown(kind)} is not modelled (other frequencies); accepted: default, llama3"
        )
    scaling = None
    if kind == "llama3":
        scaling = RopeScaling(
            factor=inner.positive("factor"),
            low_freq_factor=inner.positive("low_freq_factor"),
            high_freq_factor=inner.positive("high_freq_factor"),
            original_max_positions=inner.size("original_max_position_embeddings", positions),
        )
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            raise inner.refuse("high_freq_factor", f"must be above low_freq_factor({scaling.low_freq_factor})")
    inner.close()
    return {"rope_theta": theta, "rope_scaling": scaling}


def _name(fields: Fields) -> str:
    """What the file calls the model, on one line; of a path on somebody's disk only the last part."""
    for key in ("_name_or_path", "name_or_path"):
        found = fields.raw(key)
        if isinstance(found, str) and found.strip():
            text = "".join(letter for letter in found.strip() if letter.isprintable())
            is_path = text.startswith(("/", "./", "../", "~")) or "\\" in text
            return (text.replace("\\", "/").rstrip("/").rpartition("/")[2] if is_path else text)[:NAME_LIMIT]
    return ""


FAMILIES: dict[str, Callable[[Fields], dict[str, Any]]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
}
