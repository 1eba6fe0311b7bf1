"""The same model in Hugging Face transformers, an implementation independent of ours: parity and speed are held to it.

transformers is needed to test, never to use, so it is imported only when a reference is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from parallelism.hf_experts import expert_sizes, experts_under_reference_names
from parallelism.hf_latent import attention_under_reference_names, reference_sizes
from suite.models.decoder import DecoderSpec
from suite.models.experts_layers import has_experts
from suite.models.hf_family import reference_family
from suite.parse import SpecError, require
from suite.spec import AttentionKernel

if TYPE_CHECKING:
    from torch import nn

#: our kernel -> transformers' name for the same
KERNELS = {AttentionKernel.FLASH: "sdpa", AttentionKernel.EAGER: "eager"}
#: model_type -> class
CLASSES = {
    "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM",
}  # fmt: skip
#: model_type -> configuration, of those that compute latent attention alike
LATENT_CONFIGS = {"deepseek_v2": "DeepseekV2Config", "deepseek_v3": "DeepseekV3Config"}

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

#: our name -> LLaMA's, Mistral's and Qwen2's
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


def reference_config(
    spec: DecoderSpec, kernel: AttentionKernel, fused_gelu: bool = False, family: str | None = None
) -> Any:
    """A transformers configuration of the same model, without dropout and without a key-value cache.

    GPT-2's own activation there is `gelu_new`, eight pointwise kernels; with `fused_gelu` it is `gelu_pytorch_tanh`,
    the same function in one. `family`: of several that are its equal (LATENT_CONFIGS), which. SpecError where
    transformers is not installed or has no such model.
    """
    transformers = import_transformers()
    family = family or reference_family(spec)
    require(family == "gpt2" or not fused_gelu, f"model: {spec.name!r} is {family}'s form, which has no GELU to fuse")
    common = {
        "vocab_size": spec.vocab,
        "tie_word_embeddings": spec.tied,
        "use_cache": False,
        "attn_implementation": KERNELS[kernel],
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if family == "gpt2":
        return transformers.GPT2Config(
            **common, n_positions=spec.max_positions, n_embd=spec.hidden, n_layer=spec.layers, n_head=spec.heads,
            n_inner=spec.ffn, activation_function="gelu_pytorch_tanh" if fused_gelu else "gelu_new",
            layer_norm_epsilon=spec.norm_eps, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
    common |= {
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.norm_eps,
        "rope_parameters": _rope(spec),
    }
    if spec.latent is not None:
        return getattr(transformers, LATENT_CONFIGS[family])(
            **common, **reference_sizes(spec.latent), **expert_sizes(spec, family)
        )
    common["head_dim"] = spec.head_dim
    if family == "qwen2":
        used = {"use_sliding_window": True, "sliding_window": spec.window, "max_window_layers": 0}
        return transformers.Qwen2Config(**common, **(used if spec.window else {}))
    if family == "mixtral":
        return transformers.MixtralConfig(**common | expert_sizes(spec, family), sliding_window=spec.window)
    if family == "mistral":
        return transformers.MistralConfig(**common, sliding_window=spec.window)
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
    fused_gelu: bool = False,
    family: str | None = None,
) -> nn.Module:
    """transformers' model of the specification, with a Decoder's `state_dict` as its weights if one is given."""
    config = reference_config(spec, kernel, fused_gelu, family)
    model = getattr(import_transformers(), CLASSES[family or reference_family(spec)])(config)
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
        if place.startswith("mlp.") and has_experts(spec, int(index)):
            if f"{place}.{part}" == "mlp.router.weight":
                renamed = experts_under_reference_names(f"blocks.{index}", tensors)
                found |= {f"{blocks}.{index}.{key}": item for key, item in renamed.items()}
            continue
        if spec.latent is not None and place.startswith("attention."):
            inside = f"blocks.{index}.attention."
            mine = {key[len(inside) : -len(".weight")]: item for key, item in tensors.items() if key.startswith(inside)}
            renamed = attention_under_reference_names(spec.latent, place.removeprefix("attention."), mine)
            found |= {f"{blocks}.{index}.self_attn.{key}.{part}": item for key, item in renamed.items()}
            continue
        if is_gpt2 and place in _GPT2_FUSED:
            if place == _GPT2_FUSED[0]:
                parts = [tensors[f"blocks.{index}.{other}.{part}"] for other in _GPT2_FUSED]
                found[f"{blocks}.{index}.attn.c_attn.{part}"] = torch.cat(parts).t()
            continue
        turned = is_gpt2 and tensor.dim() == 2
        found[f"{blocks}.{index}.{inner[place]}.{part}"] = tensor.t() if turned else tensor
    return found


def import_transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise SpecError(
            "transformers: not installed, and the model asked for is its own; pip install 'shardscope[test]'"
        ) from None
    transformers.logging.set_verbosity_error()  # its advice on tiny vocabularies is not about this
    return transformers
