"""Which of Hugging Face's model families computes what a specification says. Torch-free, without transformers."""

from __future__ import annotations

from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.parse import SpecError

#: model_type -> the class of its blocks
BLOCKS = {
    "gpt2": "GPT2Block",
    "llama": "LlamaDecoderLayer",
    "mistral": "MistralDecoderLayer",
    "qwen2": "Qwen2DecoderLayer",
    "deepseek_v3": "DeepseekV3DecoderLayer",
}


def reference_family(spec: DecoderSpec) -> str:
    """transformers' model_type for the specification: gpt2, llama, mistral, qwen2 or, with latent attention,
    deepseek_v3 (whose dense blocks are deepseek_v2's too); SpecError where none is its equal."""
    form, is_windowed = (spec.norm, spec.activation, spec.position), spec.window is not None
    if form == (Norm.LAYERNORM, Activation.GELU, Position.LEARNED):
        if spec.bias and spec.q_dim == spec.kv_dim == spec.hidden and not is_windowed:
            return "gpt2"
    elif form == (Norm.RMSNORM, Activation.SWIGLU, Position.ROPE) and spec.rope_fraction == 1:
        if spec.latent is not None:
            return "deepseek_v3"
        if spec.qkv_bias and not spec.bias:
            return "qwen2"
        if not (spec.bias and is_windowed):
            return "mistral" if is_windowed else "llama"
    raise SpecError(
        f"model: {spec.name!r} has no equal in transformers; use the form of gpt2, llama, mistral, qwen2 or deepseek_v3"
    )
