"""DeepSpeed's own estimators of ZeRO's model states: stages 2 and 3, 16-bit training, no activations."""

from __future__ import annotations

import torch

from parallelism.training import build_model
from suite.case import Case
from suite.layout import Offload
from suite.peers import Figure, Peer, PeerAnswer, unanswered
from suite.spec import OptimizerKind, Precision

_NO_PEAK = Figure(None, "model states only: no activations, buckets or workspace")


def answer(case: Case) -> PeerAnswer:
    """What the estimator of the case's ZeRO stage says of one GPU.

    The functions are `estimate_zero2_model_states_mem_needs` (2 P + 18 P / N bytes) and its twin for stage 3
    (18 P / N + 4 x the largest module); P is counted by DeepSpeed's own `model_to_params` on the model that ran.
    """
    reason = _refusal(case)
    return unanswered(Peer.DEEPSPEED, reason) if reason else _estimate(case)


def _refusal(case: Case) -> str:
    layout = case.layout
    if not (layout.is_deepspeed and layout.zero >= 2):
        return "its estimators are for its own ZeRO-2 and ZeRO-3"
    if layout.world_size != layout.dp:
        return "its estimators know data parallelism alone"
    if case.workload.precision is not Precision.BF16_MIXED:
        return f"it counts 16-bit weights and gradients, the run is {case.workload.precision}"
    if case.workload.optimizer is not OptimizerKind.ADAMW:
        return f"it counts Adam's two moments, the run's optimizer is {case.workload.optimizer}"
    return ""


def _estimate(case: Case) -> PeerAnswer:
    # imported late: DeepSpeed says what it finds on the machine when it is imported
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    model = build_model(case, torch.device("cpu"))
    where = {"num_gpus_per_node": case.cluster.per_node, "num_nodes": case.cluster.nodes}
    offload = {"cpu_offload": case.layout.offload is not Offload.NONE}
    said = ", ".join(f"{name}={value}" for name, value in (where | offload).items())
    if case.layout.zero == 2:
        total = stage_1_and_2.model_to_params(model)
        _, nbytes = stage_1_and_2.estimate_zero2_model_states_mem_needs(total, **where, **offload)
        call = f"estimate_zero2_model_states_mem_needs({total}, {said})"
    else:
        total, largest = stage3.model_to_params(model)
        offload["cpu_offload_params"] = case.layout.offload is Offload.PARAMETERS
        _, nbytes, _ = stage3.estimate_zero3_model_states_mem_needs(total, largest, **where, **offload)
        call = f"estimate_zero3_model_states_mem_needs({total}, {largest}, {said})"
    return PeerAnswer(Peer.DEEPSPEED, Figure(float(nbytes)), _NO_PEAK, call)
