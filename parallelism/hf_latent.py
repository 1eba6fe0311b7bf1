"""Latent attention under transformers' DeepSeek names: which rows of its matrices are which of ours.

Ours have each head's rotated channels first, their pairs as halves, and make keys and values by a matrix each; DeepSeek
has the rotated channels last, their pairs interleaved, and fuses the projections that read the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from suite.models.latent_shape import Latent

#: our module -> DeepSeek's, where the tensor is the same
SAME = {
    "wq_down": "q_a_proj", "q_norm": "q_a_layernorm", "kv_norm": "kv_a_layernorm", "wo": "o_proj",
}  # fmt: skip
QUERIES = {"wq": "q_proj", "wq_up": "q_b_proj"}


def reference_sizes(latent: Latent) -> dict[str, Any]:
    """The fields of DeepSeek's configurations that latent attention asks for."""
    return {
        "kv_lora_rank": latent.kv_rank,
        "q_lora_rank": latent.q_rank or None,
        "qk_rope_head_dim": latent.rope_dim,
        "qk_nope_head_dim": latent.nope_dim,
        "v_head_dim": latent.v_dim,
    }


def attention_under_reference_names(
    latent: Latent, place: str, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:  # fmt: skip
    """A block's attention weight at `place` under DeepSeek's name: empty for the second of a fused pair. `tensors`: all
    of the block's attention by their places."""
    tensor = tensors[place]
    if place in SAME:
        return {SAME[place]: tensor}
    if place in QUERIES:
        heads = tensor.unflatten(0, (-1, latent.key_dim))
        rotated, own = heads.split((latent.rope_dim, latent.nope_dim), dim=1)
        return {QUERIES[place]: torch.cat((own, _interleaved(rotated)), dim=1).flatten(0, 1)}
    if place == "wkv_down":
        shared = _interleaved(tensors["wk_rope"].unsqueeze(0)).squeeze(0)
        return {"kv_a_proj_with_mqa": torch.cat((tensor, shared))}
    if place == "wk_up":
        keys = tensor.unflatten(0, (-1, latent.nope_dim))
        values = tensors["wv_up"].unflatten(0, (-1, latent.v_dim))
        return {"kv_b_proj": torch.cat((keys, values), dim=1).flatten(0, 1)}
    return {}


def _interleaved(heads: Tensor) -> Tensor:
    """Rows of each head [a, r, ...]: first and second halves -> pairs side by side."""
    return torch.stack(heads.chunk(2, dim=1), dim=2).flatten(1, 2)
