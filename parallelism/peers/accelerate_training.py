"""Hugging Face accelerate's `estimate-memory`: the functions behind its 'Training using Adam' column, without a hub."""

from __future__ import annotations

from typing import Any

from parallelism.hf_reference import reference_config, reference_model
from suite.case import Case
from suite.peers import Figure, Peer, PeerAnswer, unanswered
from suite.spec import OptimizerKind, Precision

#: our number formats in its words
FORMATS = {Precision.FP32: "float32", Precision.BF16_MIXED: "bfloat16"}


def answer(case: Case) -> PeerAnswer:
    """The largest of its four sizes (model, gradients, optimizer, step), which is what its command prints.

    Counted: bytes for each parameter. Not counted: activations, whatever the batch; layouts. Its command builds the
    model without a head; it is given an untied head too, and no tied one, which it would count twice.
    """
    reason = _refusal(case)
    return unanswered(Peer.ACCELERATE, reason) if reason else _estimate(case)


def _refusal(case: Case) -> str:
    layout, workload = case.layout, case.workload
    if layout.fsdp > 1 or layout.zero or layout.tp > 1 or layout.pp > 1:
        return "knows no sharding: it says what a whole copy of the model takes"
    if workload.precision not in FORMATS:
        return f"knows no {workload.precision}"
    if workload.optimizer is not OptimizerKind.ADAMW:
        return f"counts Adam alone, the run's optimizer is {workload.optimizer}"
    return ""


def _estimate(case: Case) -> PeerAnswer:
    from accelerate import init_empty_weights
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes

    with init_empty_weights():
        model = _model(case)
    total, _ = calculate_maximum_sizes(model)
    precision = FORMATS[case.workload.precision]
    sizes = estimate_training_usage(total, precision)
    figure = Figure(float(max(sizes.values())))
    # it has one number for training, without a part for activations: its states and its peak at once
    return PeerAnswer(Peer.ACCELERATE, figure, figure, f"max(estimate_training_usage({total}, {precision!r}))")


def _model(case: Case) -> Any:
    """transformers' model of the case. Where it is empty, accelerate unties a tied head, so that it is left out."""
    if not case.model.tied:
        return reference_model(case.decoder, case.workload.attention)
    from transformers import AutoModel

    return AutoModel.from_config(reference_config(case.decoder, case.workload.attention))
