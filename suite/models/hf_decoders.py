"""The fields of Hugging Face's decoders without experts, gpt2, llama, mistral, qwen2, as settings of our specification.

Defaults of left-out fields are those of transformers' configuration classes (5.x).
"""

from __future__ import annotations

from typing import Any

from suite.models.decoder import Activation, Norm, Position, RopeScaling
from suite.models.hf_fields import Fields, shown
from suite.parse import SpecError

_FREQUENCIES = ("linear", "dynamic", "yarn", "longrope")  # other frequencies of the same rotation
_FULL, _SLIDING = "full_attention", "sliding_attention"  # of layer_types


def gpt2(fields: Fields) -> dict[str, Any]:
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


def llama_form(fields: Fields, kv_heads: int, eps: float = 1e-6, theta: float = 10000.0) -> dict[str, Any]:
    """What llama, mistral, qwen2 and mixtral have in common; `eps` and `theta` where they are left out."""
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
        "norm_eps": fields.positive("rms_norm_eps", eps),
        **rope(fields, positions, theta),
    }


def llama(fields: Fields) -> dict[str, Any]:
    """LLaMA: biases everywhere or nowhere."""
    attention, mlp = (fields.take(f"{part}_bias", bool, False) for part in ("attention", "mlp"))
    if attention is not mlp:
        raise fields.refuse(
            "attention_bias", f"with mlp_bias {mlp} is not modelled (biases in a part of the linears); give both alike"
        )
    kv_heads = fields.size("num_key_value_heads", 0)
    return {**llama_form(fields, kv_heads), **window_of(fields, 0), "bias": attention}


def mistral(fields: Fields) -> dict[str, Any]:
    """Mistral: LLaMA's form with a window."""
    # transformers' 4096 stands for a left-out window, but null means none
    window = fields.size("sliding_window", 0 if fields.says_null("sliding_window") else 4096)
    return {**llama_form(fields, kv_heads=kv_heads_of(fields, left_out=8)), **window_of(fields, window)}


def qwen2(fields: Fields) -> dict[str, Any]:
    """Qwen2: LLaMA's form with biases in the query, key and value projections."""
    fields.only("use_mrope", False, why="rotary positions in several dimensions")
    is_used = fields.take("use_sliding_window", bool, False) and not fields.says_null("sliding_window")
    window, first = fields.size("sliding_window", 4096), fields.take("max_window_layers", int, 28)
    form = llama_form(fields, kv_heads=kv_heads_of(fields, left_out=32))
    return {**form, **window_of(fields, window if is_used else 0, first), "qkv_bias": True}


def kv_heads_of(fields: Fields, left_out: int) -> int:
    """num_key_value_heads: null means as many as heads, and a left-out one means the class's own number."""
    return fields.size("num_key_value_heads", 0 if fields.says_null("num_key_value_heads") else left_out)


def window_of(fields: Fields, window: int, first: int = 0) -> dict[str, int | None]:
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


def rope(fields: Fields, positions: int, left_out: float = 10000.0) -> dict[str, Any]:
    """rope_theta beside `rope_scaling` (transformers 4), or both within `rope_parameters` (transformers 5)."""
    if fields.has("rope_scaling") and fields.has("rope_parameters"):
        raise fields.refuse("rope_scaling", "beside rope_parameters: give one of them")
    key = "rope_scaling" if fields.has("rope_scaling") else "rope_parameters"
    inner = Fields(fields.raw(key) or {}, f"{fields.where}: {key}")
    fields.only("partial_rotary_factor", 1.0, 1, why="a head that is rotated in part")
    inner.only("partial_rotary_factor", 1.0, 1, why="a head that is rotated in part")
    outer_theta = fields.positive("rope_theta", left_out)
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
