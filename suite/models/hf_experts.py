"""The fields of Hugging Face's mixtures of experts, mixtral, deepseek_v2, deepseek_v3, as settings of our decoder.

Defaults of left-out fields are those of transformers' configuration classes (5.x).
"""

from __future__ import annotations

from typing import Any

from suite.models.experts import Balance, Experts, Scoring
from suite.models.hf_decoders import kv_heads_of, llama_form, rope, window_of
from suite.models.hf_fields import Fields, shown
from suite.models.latent_shape import Latent

#: of DeepSeek's files: what transformers does not read, or says again what other fields say
_REDUNDANT = ("ep_size", "seq_aux", "pretraining_tp", "qk_head_dim", "head_dim", "rope_interleave", "auto_map")


def mixtral(fields: Fields) -> dict[str, Any]:
    """Mixtral: LLaMA's form with experts in every block, the chosen scores normalized."""
    fields.only("router_jitter_noise", 0.0, 0, why="noise on the router's input")
    form = llama_form(fields, kv_heads_of(fields, left_out=8), eps=1e-5, theta=1e6)
    experts = Experts(
        fields.size("num_local_experts", 8), fields.size("num_experts_per_tok", 2), form["ffn"],
        **_balance_loss(fields, "router_aux_loss_coef"),
    )  # fmt: skip
    return {**form, **window_of(fields, fields.size("sliding_window", 0)), "experts": experts}


def deepseek_v2(fields: Fields) -> dict[str, Any]:
    """DeepSeek-V2: a softmax over all experts, whose chosen scores are scaled and not normalized."""
    fields.only("scoring_func", "softmax", why="scores of a V2 are a softmax")
    fields.only_maths("norm_topk_prob", False, alike=(True,), why="chosen scores are not normalized here")
    method = fields.take("topk_method", str, "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise fields.refuse("topk_method", "is not modelled; accepted: greedy or group_limited_greedy")
    is_grouped = method == "group_limited_greedy"
    groups, top_groups = fields.size("n_group", 0), fields.size("topk_group", 0)
    return _deepseek(
        fields, shared=2, dense=0, scale=1.0, normalized=False, scoring=Scoring.SOFTMAX,
        groups=groups or 1 if is_grouped else 1, top_groups=top_groups or 1 if is_grouped else 1,
        **_balance_loss(fields, "aux_loss_alpha"),
    )  # fmt: skip


def deepseek_v3(fields: Fields) -> dict[str, Any]:
    """DeepSeek-V3: sigmoids with biases that keep the balance, the best two of a group its score."""
    fields.only("scoring_func", "sigmoid", why="scores of a V3 are sigmoids")
    fields.only("topk_method", "noaux_tc", why="another choice of experts")
    fields.skip(("aux_loss_alpha", "output_router_logits", "router_aux_loss_coef"))  # of a loss that V3 does without
    predicted = fields.take("num_nextn_predict_layers", int, 1)
    if predicted and fields.has("num_nextn_predict_layers"):
        fields.notices.append(
            f"num_nextn_predict_layers {predicted}: transformers' model has none; model.mtp {predicted} trains with it"
        )
    return _deepseek(
        fields, shared=1, dense=3, scale=2.5, normalized=fields.take("norm_topk_prob", bool, True),
        scoring=Scoring.SIGMOID, groups=fields.size("n_group", 8), top_groups=fields.size("topk_group", 4),
        balance=Balance.BIAS,
    )  # fmt: skip


def _deepseek(fields: Fields, shared: int, dense: int, scale: float, **routing: Any) -> dict[str, Any]:
    """What both have in common; `shared`, `dense` and `scale` where they are left out."""
    fields.skip(_REDUNDANT)
    fields.only("hidden_act", "silu", "swish", why="the gate is SiLU")
    for name in ("attention_bias", "mlp_bias"):
        fields.only(name, False, why="biases in a part of the linears")
    fields.only("moe_layer_freq", 1, why="experts in some of the blocks")
    _released_in_fp8(fields)
    heads, positions = fields.size("num_attention_heads"), fields.size("max_position_embeddings")
    if fields.size("num_key_value_heads", heads) != heads:
        raise fields.refuse("num_key_value_heads", f"beside num_attention_heads({heads}): a latent makes keys for each")
    experts = Experts(
        fields.size("n_routed_experts"), fields.size("num_experts_per_tok"), fields.size("moe_intermediate_size"),
        shared=0 if fields.says_null("n_shared_experts") else fields.take("n_shared_experts", int, shared),
        scale=fields.positive("routed_scaling_factor", scale), **routing,
    )  # fmt: skip
    return {
        "layers": fields.size("num_hidden_layers"),
        "hidden": fields.size("hidden_size"),
        "heads": heads,
        "ffn": fields.size("intermediate_size"),
        "vocab": fields.size("vocab_size"),
        "max_positions": positions,
        "tied": fields.take("tie_word_embeddings", bool, False),
        "norm_eps": fields.positive("rms_norm_eps", 1e-6),
        "latent": _latent(fields),
        "experts": experts,
        "dense_layers": fields.take("first_k_dense_replace", int, dense),
        **rope(fields, positions),
    }


def _latent(fields: Fields) -> Latent:
    return Latent(
        kv_rank=fields.size("kv_lora_rank", 512),
        rope_dim=fields.size("qk_rope_head_dim", 64),
        nope_dim=fields.size("qk_nope_head_dim", 128),
        v_dim=fields.size("v_head_dim", 128),
        q_rank=fields.size("q_lora_rank", 0 if fields.says_null("q_lora_rank") else 1536),
    )


def _balance_loss(fields: Fields, name: str) -> dict[str, Any]:
    """The auxiliary loss, as the model was trained; transformers adds it where output_router_logits says so."""
    rate = fields.take(name, float, 0.001)
    is_added = fields.take("output_router_logits", bool, False)
    if rate and fields.has(name) and not is_added:
        fields.notices.append(f"output_router_logits False: training here adds the balance loss all the same, {rate:g}")
    return {"balance": Balance.AUXILIARY, "rate": rate} if rate else {"balance": Balance.NONE}


def _released_in_fp8(fields: Fields) -> None:
    """A checkpoint's format is none of training's: said, and let pass."""
    found = fields.raw("quantization_config")
    method = found.get("quant_method") if isinstance(found, dict) else None
    if found and method != "fp8":
        raise fields.refuse("quantization_config", "is not modelled (quantized weights); leave it out")
    if found:
        fields.notices.append(f"quantization_config {shown(found)}: the checkpoint's; training has its own precision")
