"""The same model in Hugging Face transformers, an implementation independent of ours.

Parity and speed are held to it. transformers is needed to test, never to use, so it is imported only when a reference is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.parse import SpecError
from suite.spec import AttentionKernel

if TYPE_CHECKING:
    from torch import nn

#: our kernel -> transformers' name for the same
KERNELS = {AttentionKernel.FLASH: "sdpa", AttentionKernel.EAGER: "eager"}

#: our name -> GPT-2's; a matrix under attention or mlp is stored transposed there (Conv1D)
_GPT2_MODEL = {"embedding": "transformer.wte", "positions": "transformer.wpe", "norm": "transformer.ln_f"}
_GPT2_BLOCK = {
    "attention_norm": "ln_1",
    "attention.wo": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
_GPT2_FUSED = ("attention.wq", "attention.wk", "attention.wv")  # one c_attn, in this order

#: our name -> LLaMA's and Qwen2's
_LLAMA_MODEL = {"embedding": "model.embed_tokens", "norm": "model.norm"}
_LLAMA_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def reference_family(spec: DecoderSpec) -> str:
    """transformers' model_type for the specification: gpt2, llama or qwen2; SpecError where none is its equal."""
    form = (spec.norm, spec.activation, spec.position)
    if form == (Norm.LAYERNORM, Activation.GELU, Position.LEARNED):
        if spec.bias and spec.q_dim == spec.kv_dim == spec.hidden:
            return "gpt2"
    elif form == (Norm.RMSNORM, Activation.SWIGLU, Position.ROPE) and spec.rope_fraction == 1:
        if not spec.qkv_bias or spec.bias:
            return "llama"
        return "qwen2"
    raise SpecError(f"model: {spec.name!r} has no equal in transformers; use the form of gpt2, llama or qwen2")


def reference_config(spec: DecoderSpec, kernel: AttentionKernel = AttentionKernel.FLASH) -> Any:
    """A transformers configuration of the same model, without dropout and without a key-value cache.

    GPT-2's activation is named `gelu_pytorch_tanh`: the function of `gelu_new` in one kernel instead of eight, so
    that the reference is as fast as transformers can make it. SpecError where transformers is not installed.
    """
    transformers = _transformers()
    common = {
        "vocab_size": spec.vocab,
        "tie_word_embeddings": spec.tied,
        "use_cache": False,
        "attn_implementation": KERNELS[kernel],
    }
    family = reference_family(spec)
    if family == "gpt2":
        return transformers.GPT2Config(
            **common, n_positions=spec.max_positions, n_embd=spec.hidden, n_layer=spec.layers, n_head=spec.heads,
            n_inner=spec.ffn, activation_function="gelu_pytorch_tanh", layer_norm_epsilon=spec.norm_eps,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
    common |= {
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.norm_eps,
        "rope_parameters": _rope(spec),
    }
    if family == "qwen2":
        return transformers.Qwen2Config(**common)
    return transformers.LlamaConfig(**common, attention_bias=spec.bias, mlp_bias=spec.bias)


def _rope(spec: DecoderSpec) -> dict[str, Any]:
    if spec.rope_scaling is None:
        return {"rope_type": "default", "rope_theta": spec.rope_theta}
    scaling = spec.rope_scaling
    return {
        "rope_type": "llama3",
        "rope_theta": spec.rope_theta,
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_positions,
    }


def reference_model(
    spec: DecoderSpec,
    kernel: AttentionKernel = AttentionKernel.FLASH,
    weights: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """transformers' model of the specification, with a Decoder's `state_dict` as its weights if one is given."""
    transformers = _transformers()
    classes = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
    model = getattr(transformers, classes[reference_family(spec)])(reference_config(spec, kernel))
    if weights is not None:
        model.load_state_dict(under_reference_names(spec, weights), strict=True)
    return model


def under_reference_names(spec: DecoderSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors shaped as a Decoder's parameters (weights, gradients) under transformers' names and in its shapes."""
    is_gpt2 = reference_family(spec) == "gpt2"
    outer, inner = (_GPT2_MODEL, _GPT2_BLOCK) if is_gpt2 else (_LLAMA_MODEL, _LLAMA_BLOCK)
    blocks = "transformer.h" if is_gpt2 else "model.layers"
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if not module.startswith("blocks."):
            found[f"{(outer | {'head': 'lm_head'})[module]}.{part}"] = tensor
            continue
        _, index, place = module.split(".", 2)
        if is_gpt2 and place in _GPT2_FUSED:
            if place == _GPT2_FUSED[0]:
                parts = [tensors[f"blocks.{index}.{other}.{part}"] for other in _GPT2_FUSED]
                found[f"{blocks}.{index}.attn.c_attn.{part}"] = torch.cat(parts).t()
            continue
        turned = is_gpt2 and tensor.dim() == 2
        found[f"{blocks}.{index}.{inner[place]}.{part}"] = tensor.t() if turned else tensor
    return found


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise SpecError(
            "transformers: not installed, and the model to compare with is its own; pip install 'shardscope[test]'"
        ) from None
    return transformers
