"""What torchtitan 0.3.0 cannot say of a case: refused where it cannot be trained at all, else a line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from suite.case import Case
from suite.layout import ContextMethod, RecomputeKind, ReduceType, Reduction
from suite.parse import require
from suite.spec import AttentionKernel, OptimizerKind, Precision, TokenizerKind


def check_layout(case: Case) -> None:
    """SpecError for a layout or a workload that torchtitan refuses, or has no engine for."""
    layout, seq_len = case.layout, case.workload.seq_len
    require(
        not layout.zero and not layout.is_deepspeed,
        f"layout.zero: {layout.zero} on engine {layout.data_engine}; torchtitan shards with FSDP2 alone: use fsdp in"
        " place of dp with zero, or --to deepspeed",
    )
    require(
        not (case.model.tied and layout.pp > 1),
        f"layout.pp: {layout.pp} with a tied head (model {case.model.name}); torchtitan ties no weights over a"
        " pipeline: use pp 1, or an untied model",
    )
    parts = (layout.tp if layout.sequence_parallel else 1) * (2 * layout.cp if layout.cp > 1 else 1)
    require(
        seq_len % parts == 0,
        f"workload.seq_len: {seq_len} % {parts} != 0; torchtitan cuts a sequence into 2 cp({layout.cp}) parts, and"
        f" those over tp({layout.tp}) under sequence parallelism",
    )


@dataclass(frozen=True)
class Gap:
    """A setting that torchtitan has no word for: where a case has it, and what torchtitan does instead."""

    is_met: Callable[[Case], bool]
    says: Callable[[Case], str]


def _reduces_once(case: Case) -> bool:
    layout = case.layout
    return layout.pp == 1 and case.workload.micro_batches > 1 and layout.reduction is Reduction.STEP


GAPS: tuple[Gap, ...] = (
    Gap(
        lambda case: case.cluster.device == "cpu",
        lambda case: "cluster.device(cpu): torchtitan trains on accelerators; the file is for as many of them",
    ),
    Gap(
        lambda case: case.layout.dp > 1 and case.layout.fsdp == 1,
        lambda case: (
            f"layout.dp({case.layout.dp}) with fsdp(1), DDP: torchtitan replicates with FSDP2, which casts"
            " weights and reduces gradients a block at a time"
        ),
    ),
    Gap(
        lambda case: case.layout.bucket_mib > 0,
        lambda case: f"layout.bucket_mib({case.layout.bucket_mib}): gradients are reduced a block at a time",
    ),
    Gap(
        lambda case: case.layout.cp > 1 and case.layout.fsdp == 1,
        lambda case: f"layout.cp({case.layout.cp}) with fsdp(1): torchtitan shards parameters over the context ranks",
    ),
    Gap(
        lambda case: case.layout.cp > 1,
        lambda case: (
            f"layout.context({case.layout.context}): torchtitan gathers the keys and values of the whole"
            " sequence on each context rank"
            + ("" if case.layout.context is ContextMethod.RING else ", and shares no heads out")
        ),
    ),
    Gap(
        lambda case: not isinstance(case.layout.reshard_after_forward, bool),
        lambda case: f"layout.reshard_after_forward({case.layout.reshard_after_forward}): always, to all shards",
    ),
    Gap(
        lambda case: (case.layout.forward_prefetch, case.layout.backward_prefetch) != (0, 1),
        lambda case: (
            f"layout.forward_prefetch({case.layout.forward_prefetch}), backward_prefetch("
            f"{case.layout.backward_prefetch}): FSDP2's own, 0 and 1"
        ),
    ),
    Gap(
        lambda case: case.layout.reduce_type is ReduceType.BF16,
        lambda case: "layout.reduce_type(bf16): gradients are reduced in fp32",
    ),
    Gap(
        _reduces_once,
        lambda case: (
            f"layout.reduction(step) with micro_batches({case.workload.micro_batches}): gradients are reduced"
            " after every micro-batch"
        ),
    ),
    Gap(
        lambda case: case.layout.recompute.kind is RecomputeKind.SELECTIVE,
        lambda case: (
            "layout.recompute(selective), the attention core alone: torchtitan's SelectiveAC, which reruns a"
            " block but for every other product and attention"
        ),
    ),
    Gap(
        lambda case: case.workload.precision is Precision.FP16_MIXED,
        lambda case: "workload.precision(fp16-mixed): bf16-mixed; torchtitan has no gradient scaler",
    ),
    Gap(
        lambda case: case.workload.precision is Precision.FP8,
        lambda case: "workload.precision(fp8), a scale a tensor: a scale a row (torchtitan's recipe rowwise)",
    ),
    Gap(
        lambda case: case.workload.optimizer is not OptimizerKind.ADAMW,
        lambda case: f"workload.optimizer({case.workload.optimizer}): AdamW, with two fp32 moments an element",
    ),
    Gap(
        lambda case: case.workload.attention is AttentionKernel.EAGER,
        lambda case: "workload.attention(eager): FlexAttention, which stores no scores",
    ),
    Gap(
        lambda case: case.model.dropout > 0,
        lambda case: f"model.dropout({case.model.dropout:g}): nothing is dropped",
    ),
    Gap(
        lambda case: bool(case.recipe.data) or case.recipe.tokenizer is not TokenizerKind.BPE or case.recipe.stride > 0,
        lambda case: (
            f"recipe.data({case.recipe.data!r}), tokenizer({case.recipe.tokenizer}), stride("
            f"{case.recipe.stride}): torchtitan's own data set c4 and the tokenizer at hf_assets_path"
        ),
    ),
)


def unsaid(case: Case) -> tuple[str, ...]:
    """A line for each setting of the case that torchtitan cannot express."""
    return tuple(gap.says(case) for gap in GAPS if gap.is_met(case))
