"""A mixture of experts as Megatron-LM's arguments: experts, routing, balance, and the ranks that share them."""

from __future__ import annotations

from reports.handover.megatron.part import Part, given
from suite.case import Case
from suite.models.experts import Balance, Dispatch, Experts, Scoring

#: experts of a group whose scores' sum is the group's here (arXiv:2405.04434, section 2.2.2; arXiv:2412.19437, 2.1.2);
#: Megatron-LM sums topk / group_topk of them
GROUP_SCORE = {Scoring.SOFTMAX: 1, Scoring.SIGMOID: 2}


def experts_part(case: Case) -> Part:
    """Every setting of the model's experts; nothing for a model without."""
    model, experts = case.decoder, case.decoder.experts
    if experts is None:
        return Part("experts", ())
    dense = model.dense_layers
    grouped = experts.groups > 1
    arguments = given(
        f"--num-experts {experts.count}",
        f"--moe-ffn-hidden-size {experts.ffn}",
        f"--moe-layer-freq '([0]*{dense}+[1]*{model.layers - dense})'" if dense else None,
        f"--moe-shared-expert-intermediate-size {experts.shared * experts.ffn}" if experts.shared else None,
        f"--moe-router-topk {experts.top_k}",
        f"--moe-router-score-function {experts.scoring}",
        "--moe-router-pre-softmax" if _is_before(experts) else None,
        f"--moe-router-topk-scaling-factor {experts.scale!r}" if experts.scale != 1 else None,
        f"--moe-router-num-groups {experts.groups} --moe-router-group-topk {experts.top_groups}" if grouped else None,
        "--moe-router-dtype fp32",
        *_balance(experts),
        *_capacity(experts),
        "--moe-grouped-gemm",
        "--moe-token-dispatcher-type alltoall",
        f"--expert-model-parallel-size {case.layout.ep}",
        f"--mtp-num-layers {model.mtp}" if model.mtp else None,
    )
    return Part("experts", arguments, _unsaid(experts))


def _is_before(experts: Experts) -> bool:
    """A softmax over all experts, of whose chosen scores nothing is made: Megatron-LM's own is over the chosen, which
    is the same as the chosen ones of all, normalized."""
    return experts.scoring is Scoring.SOFTMAX and not experts.normalized


def _balance(experts: Experts) -> tuple[str, ...]:
    if experts.balance is Balance.AUXILIARY:
        return ("--moe-router-load-balancing-type seq_aux_loss", f"--moe-aux-loss-coeff {experts.rate!r}")
    if experts.balance is Balance.BIAS:
        bias = f"--moe-router-enable-expert-bias --moe-router-bias-update-rate {experts.rate!r}"
        return ("--moe-router-load-balancing-type none", bias)
    return ("--moe-router-load-balancing-type none",)


def _capacity(experts: Experts) -> tuple[str, ...]:
    if experts.dispatch is Dispatch.DROPLESS:
        return ()
    return (f"--moe-expert-capacity-factor {experts.capacity_factor!r}", "--moe-token-drop-policy position")


def _unsaid(experts: Experts) -> tuple[str, ...]:
    """What of the experts is another thing under Megatron-LM."""
    lines = []
    if experts.scoring is Scoring.SIGMOID and not experts.normalized:
        lines.append("model.experts.normalized False with sigmoid: Megatron-LM makes the chosen scores sum to one")
    summed = max(1, experts.top_k // experts.top_groups)
    if experts.groups > 1 and summed != GROUP_SCORE[experts.scoring]:
        lines.append(
            f"model.experts.groups: a group's score is its best {GROUP_SCORE[experts.scoring]} here; Megatron-LM sums"
            f" {summed}"
        )
    if experts.dispatch is Dispatch.CAPACITY:
        lines.append("model.experts.capacity_factor: of each sequence here, of a rank's micro-batch in Megatron-LM")
    return tuple(lines)
