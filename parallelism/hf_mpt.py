"""MPT in transformers: its configuration, and its parameters' names. It is the one there with ALiBi and no biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from suite.models.decoder import DecoderSpec

_MODEL = {"embedding": "transformer.wte", "norm": "transformer.norm_f", "head": "lm_head"}
_BLOCK = {
    "attention_norm": "norm_1", "attention.wq": "attn.Wqkv", "attention.wo": "attn.out_proj", "mlp_norm": "norm_2",
    "mlp.up": "ffn.up_proj", "mlp.down": "ffn.down_proj",
}  # fmt: skip
_FUSED = ("wq", "wk", "wv")  # one matrix, in this order


def mpt_settings(spec: DecoderSpec) -> dict[str, Any]:
    """MptConfig's settings of the specification. Its attention is in the open alone."""
    return {
        "d_model": spec.hidden, "n_heads": spec.heads, "n_layers": spec.layers, "max_seq_len": spec.max_positions,
        "layer_norm_epsilon": spec.norm_eps, "no_bias": True, "attn_implementation": "eager",
    }  # fmt: skip


def under_mpt_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors shaped as a Decoder's parameters under MPT's names, queries', keys' and values' as one."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if not module.startswith("blocks."):
            found[f"{_MODEL[module]}.weight"] = tensor
            continue
        _, index, place = module.split(".", 2)
        if place == "attention.wq":
            tensor = torch.cat([tensors[f"blocks.{index}.attention.{part}.weight"] for part in _FUSED])
        if place in _BLOCK:
            found[f"transformer.blocks.{index}.{_BLOCK[place]}.weight"] = tensor
    return found
