"""A case as DeepSpeed's JSON (https://www.deepspeed.ai/docs/config-json): the very settings that our worker gives its
engine, and the optimizer, the schedule and the checkpointing that the worker makes itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from parallelism.zero.config import STAGE_3_SETTINGS, deepspeed_config
from reports.handover.base import Handover
from reports.handover.zero_form import precision_sections, zero_form
from suite.case import Case
from suite.layout import RecomputeKind
from suite.optimizers import BETAS, MOMENTUM, kernel_of
from suite.spec import MIN_LEARNING_RATE, AttentionKernel, LossKernel, OptimizerKernel, OptimizerKind

#: the key of what the file cannot say: DeepSpeed passes over top-level keys that it does not know
COMMENT = "_comment"
FILENAME = "ds_config.json"
_EPS = 1e-8  # torch's AdamW


def deepspeed(case: Case) -> Handover:
    """The case as ds_config.json, what it cannot say under `_comment`. SpecError for tp, cp and pp."""
    near, differing = zero_form(case)
    document = _document(case, near)
    unsaid = (
        *differing,
        *_prefetch_lines(document),
        *_optimizer_lines(case),
        *_schedule_lines(case),
        *_code_lines(case),
    )
    usage = f"{_launch(case)} TRAIN.py --deepspeed --deepspeed_config {FILENAME}"
    text = json.dumps({COMMENT: list(unsaid)} | document, indent=2, allow_nan=False) + "\n"
    return Handover(text, FILENAME, unsaid, usage)


def _document(case: Case, near: Case) -> dict[str, Any]:
    """Every key that DeepSpeed reads."""
    stage, clip = near.layout.zero, case.recipe.clip_norm
    document = deepspeed_config(near) | precision_sections(case, stage)
    document["gradient_clipping"] = clip if math.isfinite(clip) else 0.0
    if case.layout.fsdp > 1:  # whose own prefetching these would take away
        for key in STAGE_3_SETTINGS:
            document["zero_optimization"].pop(key, None)
        if type(case.layout.reshard_after_forward) is int:
            document["zero_optimization"]["zero_hpz_partition_size"] = case.layout.reshard_after_forward
    optimizer = _optimizer(case)
    if optimizer is not None:
        document["optimizer"] = optimizer
    document["scheduler"] = {
        "type": "WarmupCosineLR",
        "params": {
            "total_num_steps": case.recipe.steps,
            "warmup_num_steps": max(1, case.recipe.warmup_steps),
            "warmup_min_ratio": 0.0,
            "warmup_type": "linear",
            "cos_min_ratio": MIN_LEARNING_RATE,
        },
    }
    if _checkpoints_blocks(case):
        document["activation_checkpointing"] = {
            "partition_activations": False,
            "cpu_checkpointing": False,
            "number_checkpoints": case.model.layers,
        }
    return document


def _optimizer(case: Case) -> dict[str, Any] | None:
    """The optimizer's section: torch's own, as our worker has it; None for those that DeepSpeed cannot make."""
    kind, recipe, kernel = case.workload.optimizer, case.recipe, kernel_of(case)
    params: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    kernels = {"fused": kernel is OptimizerKernel.FUSED, "foreach": kernel is OptimizerKernel.FOREACH}
    if kind is OptimizerKind.ADAMW:
        return {"type": "AdamW", "params": params | {"betas": list(BETAS), "eps": _EPS, "torch_adam": True} | kernels}
    if kind is OptimizerKind.SGD:
        return {"type": "SGD", "params": params | {"momentum": MOMENTUM} | kernels}
    if kind is OptimizerKind.ADAFACTOR:
        return {"type": "Adafactor", "params": params | {"foreach": kernels["foreach"]}}
    return None


def _prefetch_lines(document: Mapping[str, Any]) -> list[str]:
    """What DeepSpeed would do by itself, and the estimate does not have it do."""
    held = [key for key in STAGE_3_SETTINGS if key in document["zero_optimization"]]
    if not held:
        return []
    return [
        f"{', '.join(held)} 0: nothing is prefetched or kept, as estimated; leave them out for DeepSpeed's defaults"
    ]


def _optimizer_lines(case: Case) -> list[str]:
    kind, recipe, lines = case.workload.optimizer, case.recipe, []
    if _optimizer(case) is None:
        lines.append(
            f"workload.optimizer {kind}: DeepSpeed has none that is the same; give deepspeed.initialize your own, with"
            f" learning rate {recipe.learning_rate} and weight decay {recipe.weight_decay}"
        )
    elif recipe.weight_decay:
        lines.append(
            f"recipe.weight_decay {recipe.weight_decay}: vectors decay too, unless deepspeed.initialize is given groups"
        )
    return lines


def _schedule_lines(case: Case) -> list[str]:
    """What WarmupCosineLR makes of the recipe (deepspeed/runtime/lr_schedules.py)."""
    steps = case.recipe.warmup_steps
    late = f"recipe.warmup_steps {steps}: WarmupCosineLR's first two steps have learning rate 0"
    if steps < 2:
        return [f"{late}, and it warms up for two more at least"]
    return [f"{late}, and its warm-up is two steps late; from step {steps + 2} on it is the same"]


def _code_lines(case: Case) -> list[str]:
    """What is the training script's own business."""
    workload, recompute = case.workload, case.layout.recompute
    lines = [
        f"model {case.model.name}, workload.seq_len {workload.seq_len}, recipe.seed and data: the training script's own"
    ]
    if workload.attention is AttentionKernel.EAGER:
        lines.append("workload.attention eager: the model's own business")
    if workload.loss is LossKernel.CHUNKED:
        lines.append("workload.loss chunked: the model's own business")
    if _checkpoints_blocks(case):
        which = "every block" if recompute.kind is RecomputeKind.FULL else f"blocks 0, {recompute.every}, ..."
        lines.append(
            f"layout.recompute {recompute}: activation_checkpointing says how, and the model's code says what: wrap"
            f" {which} in deepspeed.checkpointing.checkpoint or torch.utils.checkpoint"
        )
    elif recompute.kind is not RecomputeKind.NONE:
        lines.append(f"layout.recompute {recompute}: the model's code has to checkpoint so; no setting does")
    return lines


def _checkpoints_blocks(case: Case) -> bool:
    return case.layout.recompute.kind in (RecomputeKind.FULL, RecomputeKind.EVERY)


def _launch(case: Case) -> str:
    """DeepSpeed's launcher on the case's machines."""
    chosen = "DS_ACCELERATOR=cpu " if case.cluster.device == "cpu" else ""
    nodes = f" --num_nodes {case.cluster.nodes}" if case.cluster.nodes > 1 else ""
    return f"{chosen}deepspeed{nodes} --num_accelerators {case.cluster.per_node}"
