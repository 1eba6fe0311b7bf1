"""Mixtures of experts under transformers' names: gate and up are fused there, and configurations name the fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from suite.models.decoder import DecoderSpec

#: our place in a block -> DeepSeek's; Mixtral's is the same, which has no shared experts
PLACES = {
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.router.bias": "mlp.gate.e_score_correction_bias",
    "mlp.experts.down": "mlp.experts.down_proj",
    "mlp.shared.gate.weight": "mlp.shared_experts.gate_proj.weight",
    "mlp.shared.up.weight": "mlp.shared_experts.up_proj.weight",
    "mlp.shared.down.weight": "mlp.shared_experts.down_proj.weight",
}


def expert_sizes(spec: DecoderSpec, family: str) -> dict[str, Any]:
    """The fields of Mixtral's and DeepSeek's configurations that a mixture asks for."""
    experts = spec.experts
    if experts is None:
        return {"first_k_dense_replace": spec.layers}  # no block has experts
    if family == "mixtral":
        return {
            "num_local_experts": experts.count,
            "num_experts_per_tok": experts.top_k,
            "intermediate_size": experts.ffn,
            "router_jitter_noise": 0.0,
        }
    return {
        "first_k_dense_replace": spec.dense_layers,
        "n_routed_experts": experts.count,
        "num_experts_per_tok": experts.top_k,
        "moe_intermediate_size": experts.ffn,
        "n_shared_experts": experts.shared,
        "routed_scaling_factor": experts.scale,
        "norm_topk_prob": experts.normalized,
        "n_group": experts.groups,
        "topk_group": experts.top_groups,
        "topk_method": "group_limited_greedy" if experts.groups > 1 else "greedy",
    }


def experts_under_reference_names(block: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A mixture's tensors under transformers' names within its block: `tensors` of the whole model, `block` the prefix
    of one."""
    mine = {
        name.removeprefix(f"{block}."): tensor for name, tensor in tensors.items() if name.startswith(f"{block}.mlp.")
    }
    found = {PLACES[place]: tensor for place, tensor in mine.items() if place in PLACES}
    found["mlp.experts.gate_up_proj"] = torch.cat((mine["mlp.experts.gate"], mine["mlp.experts.up"]), dim=1)
    return found
