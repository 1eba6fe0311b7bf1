"""What accelerate's YAML has no key for, and what happens in its place: a line each."""

from __future__ import annotations

from suite.case import Case
from suite.layout import RecomputeKind, ReduceType, Reduction
from suite.spec import AttentionKernel, LossKernel, Precision


def layout_gaps(case: Case) -> list[str]:
    """Of the layout's settings."""
    layout = case.layout
    if layout.zero or layout.is_deepspeed:
        gaps = _deepspeed_gaps(case)
    elif layout.fsdp > 1:
        gaps = _fsdp_gaps(case)
    else:
        bucket = f"layout.bucket_mib {layout.bucket_mib}: DistributedDataParallelKwargs(bucket_cap_mb) in the script"
        gaps = [bucket] if layout.bucket_mib else []
    kind = layout.recompute.kind
    if kind is RecomputeKind.FULL and layout.fsdp == 1:
        gaps.append("layout.recompute full: model.gradient_checkpointing_enable() in the script")
    elif kind not in (RecomputeKind.NONE, RecomputeKind.FULL):
        gaps.append(f"layout.recompute {layout.recompute}: accelerate checkpoints every block or none; none here")
    return gaps


def _deepspeed_gaps(case: Case) -> list[str]:
    layout, gaps = case.layout, []
    named = "name the file of `export --to deepspeed` as deepspeed_config_file in place of these keys"
    if layout.bucket_mib:
        gaps.append(f"layout.bucket_mib {layout.bucket_mib}: DeepSpeed's 5e8 elements; {named}")
    if layout.zero == 3:
        gaps.append(f"layout.zero 3: DeepSpeed's own prefetching and kept parameters, modelled without; {named}")
    return gaps


def _fsdp_gaps(case: Case) -> list[str]:
    layout, gaps = case.layout, []
    if type(layout.reshard_after_forward) is int:
        gaps.append(f"layout.reshard_after_forward {layout.reshard_after_forward}: accelerate has true and false; true")
    if (layout.forward_prefetch, layout.backward_prefetch) != (0, 1):
        prefetch = f"forward_prefetch {layout.forward_prefetch}, backward_prefetch {layout.backward_prefetch}"
        gaps.append(f"layout.{prefetch}: FSDP2's own, 0 and 1")
    is_mixed = case.workload.precision not in (Precision.FP32, Precision.BF16)
    if is_mixed and layout.reduce_type is ReduceType.FP32:
        own = "fp16" if case.workload.precision is Precision.FP16_MIXED else "bf16"
        gaps.append(f"layout.reduce_type fp32: accelerate reduces gradients in {own}, as it computes")
    if case.workload.micro_batches > 1 and layout.reduction is Reduction.MICRO_BATCH:
        gaps.append("layout.reduction micro-batch: GradientAccumulationPlugin(sync_each_batch=True) in the script")
    if layout.tp > 1:
        gaps.append(f"layout.tp {layout.tp}: the script loads its model with tp_plan='auto', which divides it")
        if layout.sequence_parallel:
            gaps.append("layout.sequence_parallel true: the plans of transformers' models have none")
    if layout.cp > 1:
        gaps.append("layout.cp: the script runs each step under accelerator.maybe_context_parallel")
        if not layout.load_balance:
            gaps.append("layout.load_balance false: torch balances its ring")
    return gaps


def precision_gaps(case: Case) -> list[str]:
    """Of the number format, where the layout is not DeepSpeed's (`zero_form` speaks of those)."""
    layout, precision = case.layout, case.workload.precision
    if precision is Precision.BF16:
        return ["workload.precision bf16: mixed_precision is no, and the script loads its model in bf16"]
    if layout.zero or layout.is_deepspeed or precision not in (Precision.FP8, Precision.FP8_ROWWISE):
        return []
    scale = "a scale a tensor" if precision is Precision.FP8 else "a scale a tensor in place of one a row"
    return [f"workload.precision {precision}: torchao's recipe, {scale}, unless the script gives AORecipeKwargs"]


def script_gaps(case: Case) -> list[str]:
    """What the training script says, and no configuration."""
    workload, recipe, layout = case.workload, case.recipe, case.layout
    gaps = [
        f"model {case.model.name}, workload.seq_len {workload.seq_len}, workload.micro_batch {workload.micro_batch}:"
        " the script's own model and DataLoader",
        f"workload.optimizer {workload.optimizer}, recipe.learning_rate {recipe.learning_rate}, recipe.warmup_steps"
        f" {recipe.warmup_steps}, recipe.weight_decay {recipe.weight_decay}: the script's own optimizer and schedule",
    ]
    is_deepspeed = layout.zero or layout.is_deepspeed
    if workload.micro_batches > 1 and not is_deepspeed:
        gaps.append(f"workload.micro_batches {workload.micro_batches}: Accelerator(gradient_accumulation_steps=...)")
    if not is_deepspeed and recipe.clip_norm < float("inf"):
        gaps.append(f"recipe.clip_norm {recipe.clip_norm}: accelerator.clip_grad_norm_ in the script")
    if workload.attention is AttentionKernel.EAGER:
        gaps.append("workload.attention eager: attn_implementation='eager' where the model is loaded")
    if workload.loss is LossKernel.CHUNKED:
        gaps.append("workload.loss chunked: the script's own loss")
    return gaps
