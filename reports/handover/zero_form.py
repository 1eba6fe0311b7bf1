"""The nearest that DeepSpeed's engine can do to a case: which ZeRO stage, in which precision, and what then differs."""

from __future__ import annotations

from dataclasses import replace

from suite.case import Case
from suite.layout import Engine, Layout, Offload, ReduceType, Reduction
from suite.models.experts import Balance
from suite.parse import SpecError, require
from suite.spec import OptimizerKernel, OptimizerKind, Precision

#: axes that split a model, and what DeepSpeed has for each
_SPLITS = {
    "tp": "its AutoTP rewrites models of the transformers library alone",
    "cp": "its Ulysses attention is code of the model, no setting",
    "pp": "its pipeline takes a model written as a list of layers, no setting",
    "ep": "its mixture of experts is a layer of the model's code, no setting",
}


def zero_form(case: Case) -> tuple[Case, tuple[str, ...]]:
    """The case as ZeRO over all its data ranks, and what differs from it, a line each.

    fsdp becomes stage 3, or stage 2 where parameters are kept after forward; dp alone stage 0, torch's ZeRO-1 stage 1.
    Precision is bf16-mixed or fp32 in what is given; `precision_sections` has the case's own. SpecError for layouts
    that split the model: no setting of DeepSpeed's does.
    """
    layout, workload = case.layout, case.workload
    for axis, why in _SPLITS.items():
        degree = getattr(layout, axis)
        require(
            degree == 1,
            f"layout.{axis}: {degree}: DeepSpeed's engine splits no model by a setting ({why}); use zero or fsdp, or"
            " export to megatron or torchtitan",
        )
    experts = case.model.experts
    if experts is not None and experts.balance is Balance.BIAS and workload.precision is not Precision.FP32:
        raise SpecError(
            f"model.experts.balance: bias with workload.precision({workload.precision}): DeepSpeed's engine rounds"
            " buffers to 16 bits, in which routers' biases do not move by so small a step; use fp32, or export to"
            " torchrun"
        )
    if layout.zero and workload.optimizer not in (OptimizerKind.ADAMW, OptimizerKind.SGD):
        raise SpecError(
            f"workload.optimizer: {workload.optimizer} with layout.zero({layout.zero}): DeepSpeed's stages 1 to 3"
            " update flat partitions, which have no rows or columns; use adamw or sgd"
        )
    stage = _stage(layout)
    offload = layout.offload if stage == 3 or layout.offload is Offload.NONE else Offload.OPTIMIZER
    near = Layout(
        dp=layout.data_ranks,
        zero=stage,
        engine=Engine.DEEPSPEED if layout.data_ranks > 1 else Engine.AUTO,
        offload=offload,
        bucket_mib=layout.bucket_mib if stage else 0,
    )
    precision = Precision.FP32 if workload.precision is Precision.FP32 else Precision.BF16_MIXED
    made = replace(
        case,
        layout=near,
        workload=replace(
            workload, precision=precision, optimizer=OptimizerKind.ADAMW, optimizer_kernel=OptimizerKernel.AUTO
        ),
    )
    return made, (*_layout_lines(case, stage), *_precision_lines(case, stage))


def _stage(layout: Layout) -> int:
    if layout.fsdp > 1:
        return 2 if layout.reshard_after_forward is False else 3
    return layout.zero


def _layout_lines(case: Case, stage: int) -> list[str]:
    layout, lines = case.layout, []
    ranks = layout.data_ranks
    if layout.fsdp > 1:
        lines.append(_fsdp_line(layout, stage))
        if layout.dp > 1:
            lines.append(
                f"layout.dp {layout.dp} x fsdp {layout.fsdp}: DeepSpeed shards over all {ranks} ranks, with no replicas"
            )
        if (layout.forward_prefetch, layout.backward_prefetch) != (0, 1):
            prefetch = f"forward_prefetch {layout.forward_prefetch}, backward_prefetch {layout.backward_prefetch}"
            lines.append(f"layout.{prefetch}: DeepSpeed counts elements (stage3_prefetch_bucket_size: its default)")
        if layout.offload is Offload.PARAMETERS and stage < 3:
            lines.append("layout.offload parameters: stage 2 offloads the optimizer alone")
    elif layout.engine is not Engine.DEEPSPEED and not layout.is_deepspeed and ranks > 1:
        wrapped = "DDP's" if not layout.zero else "ZeroRedundancyOptimizer's"
        lines.append(f"layout.engine torch: DeepSpeed's stage {stage} in {wrapped} place")
    if layout.bucket_mib and not stage:
        lines.append(
            f"layout.bucket_mib {layout.bucket_mib}: stage 0 has a bucket of 5e8 elements that no setting reaches"
        )
    if (
        case.workload.micro_batches > 1
        and ranks > 1
        and layout.reduction is not _reduction(stage)
        and not layout.is_deepspeed
    ):
        lines.append(f"layout.reduction {layout.reduction}: stage {stage} reduces every {_reduction(stage)}")
    return lines


def _fsdp_line(layout: Layout, stage: int) -> str:
    if stage == 2:
        return "layout.reshard_after_forward false: ZeRO-2, whose parameters are whole between steps too"
    kept = layout.reshard_after_forward
    if kept is not True:
        return f"layout.reshard_after_forward {kept}: ZeRO-3 with zero_hpz_partition_size {kept}"
    return f"layout.fsdp {layout.fsdp}: ZeRO-3, which gathers and frees a module at a time and not a block"


def _reduction(stage: int) -> Reduction:
    return Reduction.MICRO_BATCH if stage >= 2 else Reduction.STEP


def _precision_lines(case: Case, stage: int) -> list[str]:
    precision, lines = case.workload.precision, []
    if case.layout.is_deepspeed and precision is Precision.BF16_MIXED:
        pass
    elif precision in (Precision.BF16_MIXED, Precision.FP16_MIXED):
        kind = precision.value.removesuffix("-mixed")
        lines.append(
            f"workload.precision {precision}: DeepSpeed's {kind}, its parameters in {kind} beside fp32 masters"
        )
    elif precision is Precision.BF16 and not stage:
        lines.append("workload.precision bf16: DeepSpeed's stage 0 keeps fp32 masters beside it")
    elif precision in (Precision.FP8, Precision.FP8_ROWWISE):
        lines.append(f"workload.precision {precision}: DeepSpeed has no fp8 training; bf16 in its place")
    if not stage and precision is not Precision.FP32:
        lines.append(
            "layout.zero 0: in 16 bits the engine begins with a step of no gradients, which decays the weights once"
        )
    return lines


def precision_sections(case: Case, stage: int) -> dict[str, object]:
    """DeepSpeed's keys for the case's precision, where they are others than bf16 with fp32 masters, or none."""
    workload, layout = case.workload, case.layout
    if workload.precision is Precision.FP16_MIXED:
        return {"bf16": {"enabled": False}, "fp16": {"enabled": True, "loss_scale": 0}}
    if workload.precision is Precision.BF16 and stage:
        return {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}}
    if workload.precision is Precision.BF16_MIXED and layout.fsdp > 1 and layout.reduce_type is ReduceType.FP32:
        return {"communication_data_type": "fp32"}
    return {}
