"""Which of Hugging Face's model families computes what a specification says. Torch-free, without transformers."""

from __future__ import annotations

from suite.models.decoder import Activation, DecoderSpec, Mixing, Norm, Position
from suite.parse import SpecError

#: model_type -> the class of its blocks
BLOCKS = {
    "gpt2": "GPT2Block",
    "llama": "LlamaDecoderLayer",
    "mistral": "MistralDecoderLayer",
    "qwen2": "Qwen2DecoderLayer",
    "mpt": "MptBlock",
    "deepseek_v3": "DeepseekV3DecoderLayer",
}


def reference_family(spec: DecoderSpec) -> str:
    """transformers' model_type for the specification: gpt2, mpt, llama, mistral, qwen2 or, with latent attention,
    deepseek_v3 (whose dense blocks are deepseek_v2's too); SpecError where none is its equal."""
    if spec.mixing is Mixing.LINEAR:
        raise _without_equal(spec)
    form, is_windowed = (spec.norm, spec.activation, spec.position), spec.window is not None
    if form == (Norm.LAYERNORM, Activation.GELU, Position.LEARNED):
        if spec.bias and spec.q_dim == spec.kv_dim == spec.hidden and not is_windowed:
            return "gpt2"
    elif form == (Norm.LAYERNORM, Activation.GELU_EXACT, Position.ALIBI):
        is_mpt = spec.q_dim == spec.kv_dim == spec.hidden and spec.ffn == 4 * spec.hidden
        if is_mpt and not spec.projection_bias and not is_windowed:
            return "mpt"
    elif form == (Norm.RMSNORM, Activation.SWIGLU, Position.ROPE) and spec.rope_fraction == 1:
        if spec.latent is not None:
            return "deepseek_v3"
        if spec.qkv_bias and not spec.bias:
            return "qwen2"
        if not (spec.bias and is_windowed):
            return "mistral" if is_windowed else "llama"
    raise _without_equal(spec)


def _without_equal(spec: DecoderSpec) -> SpecError:
    return SpecError(
        f"model: {spec.name!r} has no equal in transformers; use the form of gpt2, mpt, llama, mistral, qwen2 or"
        " deepseek_v3"
    )
