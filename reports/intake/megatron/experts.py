"""The experts that Megatron-LM's arguments describe."""

from __future__ import annotations

import re
from typing import Any

from reports.intake.megatron.settings import Settings
from suite.models.experts import Balance, Dispatch, Experts, Scoring
from suite.parse import SpecError

#: --moe-layer-freq as it says so many dense blocks and then mixtures: ([0]*3+[1]*58)
_FIRST_DENSE = re.compile(r"\(?\[0\]\*(\d+)\+\[1\]\*(\d+)\)?", flags=re.ASCII)
#: how experts are computed and reached, which changes no size of the model
_KERNELS = (
    "moe_grouped_gemm", "moe_token_dispatcher_type", "moe_router_dtype", "moe_permute_fusion", "moe_router_fusion",
    "moe_shared_expert_overlap", "moe_per_layer_logging", "moe_enable_deepep", "moe_flex_dispatcher_backend",
    "moe_token_drop_policy",
)  # fmt: skip


def experts_of(settings: Settings, layers: int, ffn: int) -> dict[str, Any]:
    """`experts`, `dense_layers` and `mtp` of the model; nothing for one without. SpecError for mixtures in blocks that
    are not the last ones, and for routing that is not modelled."""
    if not settings.says("num_experts"):
        return {}
    settings.taken.update(_KERNELS)
    scoring = _scoring(settings)
    width = settings.whole("moe_ffn_hidden_size", ffn)
    is_raw = scoring is Scoring.SOFTMAX and settings.is_on("moe_router_pre_softmax")
    factor = settings.number("moe_expert_capacity_factor")
    capacity: dict[str, Any] = (
        {} if factor is None else {"dispatch": Dispatch.CAPACITY, "capacity_factor": float(factor)}
    )
    experts = Experts(
        settings.whole("num_experts"), settings.whole("moe_router_topk"), width, shared=_shared(settings, width),
        scoring=scoring, normalized=not is_raw,
        scale=float(settings.number("moe_router_topk_scaling_factor") or 1.0),
        groups=settings.whole("moe_router_num_groups", 1), top_groups=settings.whole("moe_router_group_topk", 1),
        **_balance(settings), **capacity,
    )  # fmt: skip
    mtp = int(settings.number("mtp_num_layers") or 0)
    return {"experts": experts, "dense_layers": _dense(settings, layers), "mtp": mtp}


def _scoring(settings: Settings) -> Scoring:
    word = settings.word("moe_router_score_function")
    if word not in list(Scoring):
        raise SpecError(f"--moe-router-score-function: {word!r} is not modelled; accepted: {', '.join(Scoring)}")
    return Scoring(word)


def _shared(settings: Settings, width: int) -> int:
    """Shared experts of a routed one's width; Megatron-LM says their width together."""
    together = int(settings.number("moe_shared_expert_intermediate_size") or 0)
    if together % width:
        raise SpecError(
            f"--moe-shared-expert-intermediate-size: {together} is no multiple of --moe-ffn-hidden-size({width});"
            " shared experts are as wide as routed ones here"
        )
    return together // width


def _balance(settings: Settings) -> dict[str, Any]:
    """A loss with a coefficient, or biases; of a loss over several sequences it is said that here it is of each."""
    kind = settings.word("moe_router_load_balancing_type")
    rate = float(settings.number("moe_aux_loss_coeff") or 0.0)
    if settings.is_on("moe_router_enable_expert_bias"):
        if rate and kind != "none":
            settings.leave("moe_aux_loss_coeff", "biases keep the balance alone here")
        return {"balance": Balance.BIAS, "rate": settings.share("moe_router_bias_update_rate")}
    if kind == "none" or not rate:
        return {"balance": Balance.NONE}
    if kind != "seq_aux_loss":
        settings.leave("moe_router_load_balancing_type", "taken as seq_aux_loss, a loss of each sequence")
    return {"balance": Balance.AUXILIARY, "rate": rate}


def _dense(settings: Settings, layers: int) -> int:
    """The first blocks, which have no experts."""
    text = (settings.text("moe_layer_freq") or "1").replace(" ", "").strip("'\"")
    found = _FIRST_DENSE.fullmatch(text)
    if found and int(found[1]) + int(found[2]) == layers:
        return int(found[1])
    if text in ("1", f"([1]*{layers})", f"[1]*{layers}"):
        return 0
    raise SpecError(
        f"--moe-layer-freq: {text!r} is not modelled; accepted: 1, or the first blocks dense, as"
        f" ([0]*1+[1]*{layers - 1})"
    )
