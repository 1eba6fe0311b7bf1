"""Rows of Megatron-LM and Megatron-DeepSpeed runs -> a MegatronRun, and the stage that a figure is about."""

from __future__ import annotations

import re
from dataclasses import dataclass

from memory.megatron.estimate import estimate_megatron
from parallelism.megatron.run import AttentionCore, CrossEntropy, MegatronOptimizer, MegatronRun, PipelineMemory
from reports.published.answers import CannotModel
from reports.published.models import model_of
from suite.layout import RecomputeKind
from suite.models.decoder import Position
from suite.published import PublishedRow
from suite.record import MemoryEstimate

_SCHEDULE = re.compile(r"schedule=([\w-]+)", flags=re.ASCII)
_SCHEDULES = {
    "1f1b": PipelineMemory.ONE_F_ONE_B, "1f1b-i": PipelineMemory.INTERLEAVED, "zb-h1": PipelineMemory.ZB_H1,
    "zb-h2": PipelineMemory.ZB_H2, "zb-1p": PipelineMemory.ZB_1P, "zb-2p": PipelineMemory.ZB_2P,
    "zb-v": PipelineMemory.ZBV, "zbv": PipelineMemory.ZBV,
}  # fmt: skip


@dataclass(frozen=True)
class DescribedRun:
    """A run, and what the row left open."""

    run: MegatronRun
    assumed: tuple[str, ...]


def is_megatron(row: PublishedRow) -> bool:
    """Did Megatron, or a fork of it, run this?"""
    return row.says("framework", "megatron")


def megatron_estimate(row: PublishedRow, run: MegatronRun) -> MemoryEstimate:
    """The estimate of the stage that the row's figure is about: the first, the last, or the one that needs most.
    Megatron's golden values are logged by its last rank."""
    if row.says("quantity", "first_stage"):
        return estimate_megatron(run, 0)
    if row.says("quantity", "last_stage") or row.says("framework", "golden"):
        return estimate_megatron(run, run.pp - 1)
    return max((estimate_megatron(run, stage) for stage in range(run.pp)), key=lambda found: found.peak_bytes)


def megatron_run(row: PublishedRow) -> DescribedRun:
    """The run that a row describes. CannotModel, UnreadableCell or SpecError with the reason where it cannot be one."""
    described = model_of(row)
    assumed = list(described.assumed)
    model, is_gpt = described.spec, described.spec.position is Position.LEARNED
    tp, cp, pp = (row.count(name) or 1 for name in ("tp", "cp", "pp"))
    stages, chunks, schedule = _pipeline(row, model.layers, pp, assumed)
    dp = row.count("dp") or max(1, (row.count("gpus") or 1) // (tp * cp * pp))
    is_fused_loss = row.says("extra", "cross-entropy fusion")
    if is_fused_loss:
        assumed.append("weight gradients are tensors of their own, as this source's fit rows have it")
    if row.flag("sp") is None and tp > 1:
        assumed.append("no sequence parallelism")
    if is_gpt:
        assumed.append("dropout, Megatron's default")
    run = MegatronRun(
        model=model, seq_len=row.need("seq_len"), micro_batch=row.need("micro_batch"),
        micro_batches=_micro_batches(row, dp), tp=tp, cp=cp, pp=pp, dp=dp, sequence_parallel=bool(row.flag("sp")),
        schedule=schedule, chunks=chunks, stage_layers=stages, optimizer=_optimizer(row), recompute=_recompute(row),
        attention=_attention(row, assumed),
        cross_entropy=CrossEntropy.FUSED_16_BIT if is_fused_loss else CrossEntropy.PARALLEL,
        dropout=is_gpt, is_gradient_fused=not is_fused_loss,
    )  # fmt: skip
    return DescribedRun(run, tuple(assumed))


def _micro_batches(row: PublishedRow, dp: int) -> int:
    """Micro-batches a step: as stated, or the global batch over what the replicas take at once."""
    stated, batch = row.count("grad_accum"), row.count("global_batch")
    return stated or max(1, (batch or 1) // (dp * row.need("micro_batch")))


def _pipeline(
    row: PublishedRow, layers: int, pp: int, assumed: list[str]
) -> tuple[tuple[int, ...], int, PipelineMemory]:
    """(blocks of each stage, chunks a rank, schedule)."""
    extra, virtual = row.text("extra"), row.text("vp")
    if pp > layers:
        raise CannotModel(f"pp {pp} with {layers} layers: every stage holds at least one block")
    is_short = "one layer fewer" in extra or "counts as a layer" in extra
    if is_short and pp > 1 and (layers + 2) % pp == 0:
        each = (layers + 2) // pp
        stages = (each - 1, *[each] * (pp - 2), each - 1)
    else:
        each, rest = divmod(layers, pp)
        stages = tuple(each + (stage < rest) for stage in range(pp))
        if rest:
            assumed.append(f"{layers} layers on {pp} stages, the first {rest} with one more")
    named = _SCHEDULE.search(extra)
    if named and named[1].lower() not in _SCHEDULES:
        raise CannotModel(f"schedule {named[1]}: not modelled; modelled: {', '.join(_SCHEDULES)}")
    is_each = "per chunk" in virtual
    chunks = max(stages) if is_each else (row.count("vp") or 1)
    if named:
        return stages, chunks, _SCHEDULES[named[1].lower()]
    return stages, chunks, PipelineMemory.INTERLEAVED if chunks > 1 else PipelineMemory.ONE_F_ONE_B


def _optimizer(row: PublishedRow) -> MegatronOptimizer:
    stage = row.count("zero") or 0
    if stage > 1:
        raise CannotModel(f"zero {stage} under Megatron: not modelled")
    if not row.says("framework", "deepspeed"):
        return MegatronOptimizer.DISTRIBUTED if stage else MegatronOptimizer.MIXED
    is_bf16 = row.says("precision", "bf16") and not row.says("precision", "fp16")
    if row.text("zero") == "0" and not is_bf16:
        return MegatronOptimizer.DEEPSPEED_WHOLE
    return MegatronOptimizer.DEEPSPEED_BF16 if is_bf16 else MegatronOptimizer.DEEPSPEED_FP16


def _recompute(row: PublishedRow) -> RecomputeKind:
    kinds = {
        "none": RecomputeKind.NONE, "full": RecomputeKind.FULL, "selective-attention": RecomputeKind.SELECTIVE,
    }  # fmt: skip
    kind = row.text("recompute_kind")
    if kind not in kinds:
        raise CannotModel(f"recompute_kind {kind!r}: not stated, or not modelled for Megatron")
    return kinds[kind]


def _attention(row: PublishedRow, assumed: list[str]) -> AttentionCore:
    if row.says("attn_impl", "unfused"):
        return AttentionCore.UNFUSED
    if row.says("attn_impl", "flash", "fused", "transformer_engine"):
        return AttentionCore.FUSED
    assumed.append("attention not fused: not stated")
    return AttentionCore.UNFUSED
