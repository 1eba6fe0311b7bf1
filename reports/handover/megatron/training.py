"""Batch, number formats, optimizer and recipe as Megatron-LM's arguments."""

from __future__ import annotations

import math

from reports.handover.megatron.part import Part, given
from suite.case import Case
from suite.optimizers import BETAS, MOMENTUM, kernel_of
from suite.parse import require
from suite.spec import MIN_LEARNING_RATE, AttentionKernel, LossKernel, OptimizerKernel, OptimizerKind, Precision

OPTIMIZERS = {OptimizerKind.ADAMW: "adam", OptimizerKind.SGD: "sgd", OptimizerKind.MUON: "muon"}
FORMATS = {
    Precision.FP32: (),
    Precision.BF16_MIXED: ("--bf16",),
    Precision.BF16: ("--bf16",),
    Precision.FP16_MIXED: ("--fp16", "--accumulate-allreduce-grads-in-fp32"),
    Precision.FP8: ("--bf16", "--fp8-format hybrid --fp8-recipe tensorwise"),
    Precision.FP8_ROWWISE: ("--bf16", "--fp8-format hybrid --fp8-recipe tensorwise"),
}


def batch_part(case: Case) -> Part:
    """Sequences and their length."""
    arguments = (
        f"--seq-length {case.workload.seq_len}",
        f"--micro-batch-size {case.workload.micro_batch}",
        f"--global-batch-size {case.global_batch}",
    )
    return Part("batch", arguments)


def format_part(case: Case) -> Part:
    """Number formats and kernels."""
    workload = case.workload
    unsaid = []
    if workload.precision is Precision.BF16:
        unsaid.append("workload.precision bf16: Megatron-LM keeps fp32 masters, moments and gradients beside bf16")
    if workload.precision is Precision.FP8_ROWWISE:
        unsaid.append("workload.precision fp8-rowwise: Megatron-LM has a scale a tensor (fp8), or a block")
    if workload.loss is LossKernel.CHUNKED:
        unsaid.append("workload.loss chunked: Megatron-LM computes the loss of all tokens at once")
    return Part("formats and kernels", (*FORMATS[workload.precision], _attention(case)), tuple(unsaid))


def _attention(case: Case) -> str:
    """The core. Flash attention takes 16 bits and one width of keys and values: elsewhere Transformer Engine picks."""
    if case.workload.attention is AttentionKernel.EAGER:
        return "--attention-backend unfused"
    is_plain = case.workload.precision is not Precision.FP32 and case.model.latent is None
    return f"--attention-backend {'flash' if is_plain else 'auto'}"


def optimizer_part(case: Case) -> Part:
    """The update rule and how the rate goes. SpecError for a rule that Megatron-LM has not: it would learn another
    model."""
    recipe, kind = case.recipe, case.workload.optimizer
    require(
        kind in OPTIMIZERS,
        f"workload.optimizer: {kind} to megatron, which has no such rule; use adamw, sgd or muon",
    )
    clip = 0.0 if math.isinf(recipe.clip_norm) else recipe.clip_norm
    arguments = (
        f"--optimizer {OPTIMIZERS[kind]}",
        *_constants(kind),
        f"--lr {recipe.learning_rate!r}",
        f"--min-lr {recipe.learning_rate * MIN_LEARNING_RATE:.12g}",
        "--lr-decay-style cosine",
        f"--lr-decay-iters {max(recipe.steps, recipe.warmup_steps + 1)}",
        f"--lr-warmup-iters {recipe.warmup_steps}",
        f"--weight-decay {recipe.weight_decay!r}",
        f"--clip-grad {clip!r}",
        f"--train-iters {recipe.steps}",
        f"--seed {recipe.seed}",
        f"--eval-iters {recipe.validation_batches}",
        *given(f"--eval-interval {max(1, recipe.steps // 10)}" if recipe.validation_batches else None),
    )
    return Part("optimizer and recipe", arguments, _unsaid(case))


def _constants(kind: OptimizerKind) -> tuple[str, ...]:
    if kind is OptimizerKind.SGD:
        return (f"--sgd-momentum {MOMENTUM}",)
    return (f"--adam-beta1 {BETAS[0]} --adam-beta2 {BETAS[1]}",)


def _unsaid(case: Case) -> tuple[str, ...]:
    lines = []
    if kernel_of(case) is not OptimizerKernel.FUSED and case.workload.optimizer_kernel is not OptimizerKernel.AUTO:
        lines.append(f"workload.optimizer_kernel {case.workload.optimizer_kernel}: Megatron-LM's update is fused")
    if case.workload.optimizer is OptimizerKind.MUON:
        lines.append("workload.optimizer muon: with Megatron-LM's own momentum, scale and iterations")
    if case.recipe.stride:
        lines.append(f"recipe.stride {case.recipe.stride}: Megatron-LM's samples follow each other, seq_len apart")
    return tuple(lines)
