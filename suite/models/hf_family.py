"""Which of Hugging Face's model families computes what a specification says. Torch-free, without transformers."""

from __future__ import annotations

from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.models.experts import Balance, Dispatch, Experts, Scoring
from suite.parse import SpecError

#: model_type -> the class of its blocks
BLOCKS = {
    "gpt2": "GPT2Block",
    "llama": "LlamaDecoderLayer",
    "mistral": "MistralDecoderLayer",
    "qwen2": "Qwen2DecoderLayer",
    "mixtral": "MixtralDecoderLayer",
    "deepseek_v2": "DeepseekV2DecoderLayer",
    "deepseek_v3": "DeepseekV3DecoderLayer",
}


def reference_family(spec: DecoderSpec) -> str:
    """transformers' model_type for the specification: gpt2, llama, mistral, qwen2, with experts mixtral, or with latent
    attention deepseek_v2 or deepseek_v3 (whose dense blocks are alike); SpecError where none is its equal."""
    form, is_windowed = (spec.norm, spec.activation, spec.position), spec.window is not None
    if form == (Norm.LAYERNORM, Activation.GELU, Position.LEARNED):
        if spec.bias and spec.q_dim == spec.kv_dim == spec.hidden and not is_windowed:
            return "gpt2"
    elif form == (Norm.RMSNORM, Activation.SWIGLU, Position.ROPE) and spec.rope_fraction == 1:
        if spec.experts is not None:
            return _family_with_experts(spec, spec.experts)
        if spec.latent is not None:
            return "deepseek_v3"
        if spec.qkv_bias and not spec.bias:
            return "qwen2"
        if not (spec.bias and is_windowed):
            return "mistral" if is_windowed else "llama"
    raise _no_equal(spec)


def _family_with_experts(spec: DecoderSpec, experts: Experts) -> str:
    """Mixtral's softmax is normalized, DeepSeek-V2's (as transformers has it) never; V3 scores by sigmoids, and its
    router has a bias."""
    is_plain = experts.dispatch is Dispatch.DROPLESS and not spec.mtp
    if spec.latent is None:
        bare = (experts.shared, experts.groups, experts.scale, spec.dense_layers) == (0, 1, 1, 0)
        if is_plain and bare and not spec.qkv_bias and experts.scoring is Scoring.SOFTMAX and experts.normalized:
            return "mixtral"
    elif is_plain and experts.shared:
        if experts.scoring is Scoring.SIGMOID and experts.balance is Balance.BIAS:
            return "deepseek_v3"
        if experts.scoring is Scoring.SOFTMAX and not experts.normalized:
            return "deepseek_v2"
    raise _no_equal(spec)


def _no_equal(spec: DecoderSpec) -> SpecError:
    return SpecError(
        f"model: {spec.name!r} has no equal in transformers; use the form of gpt2, llama, mistral, qwen2, mixtral,"
        " deepseek_v2 or deepseek_v3"
    )
