"""The layout as Megatron-LM's arguments: what it has not is said where only speed or memory change, refused where the
model would lie on other ranks, or not fit them."""

from __future__ import annotations

from parallelism.schedules.stages import block_counts
from reports.handover.megatron.part import Part, given
from suite.case import Case
from suite.layout import ContextMethod, Layout, Offload, Recompute, RecomputeKind, ReduceType, Reduction, Schedule
from suite.parse import require
from suite.spec import Precision
from suite.units import MIB

#: bytes of a gradient in the buckets that Megatron-LM reduces
GRADIENT_BYTES = 4
#: what runs in the place of schedules that Megatron-LM has not, on the same stages
INSTEAD = {Schedule.GPIPE: Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED_ZERO_BUBBLE: Schedule.INTERLEAVED}


def parallel_part(case: Case) -> Part:
    """Tensor, sequence and context parallelism."""
    layout = case.layout
    context = layout.context is ContextMethod.ULYSSES
    arguments = given(
        f"--tensor-model-parallel-size {layout.tp}",
        "--sequence-parallel" if layout.tp > 1 and layout.sequence_parallel else None,
        f"--context-parallel-size {layout.cp}" if layout.cp > 1 else None,
        f"--cp-comm-type {'a2a' if context else 'p2p'}" if layout.cp > 1 else None,
    )
    unsaid = []
    if layout.cp > 1 and not layout.load_balance and not context:
        unsaid.append("layout.load_balance False: Megatron-LM always gives a rank an early and a late part")
    return Part("tensor and context parallelism", arguments, tuple(unsaid))


def pipeline_part(case: Case) -> Part:
    """Stages and schedule. SpecError for schedules whose stages lie on other ranks than Megatron-LM can place them."""
    layout = case.layout
    if layout.pp == 1:
        return Part("pipeline", ("--pipeline-model-parallel-size 1",))
    require(
        not layout.schedule.is_v,
        f"layout.schedule: {layout.schedule} to megatron, which cannot place the last stage on the first rank; use"
        " interleaved-1f1b with virtual_stages 2, or 1f1b",
    )
    unsaid = []
    if layout.schedule in INSTEAD:
        instead = INSTEAD[layout.schedule]
        unsaid.append(f"layout.schedule {layout.schedule}: Megatron-LM runs {instead} on the same stages")
    arguments = (f"--pipeline-model-parallel-size {layout.pp}", *_stages(case), *_rounds(case))
    return Part("pipeline", arguments, tuple(unsaid))


def _stages(case: Case) -> tuple[str, ...]:
    """Blocks of each stage: nothing where they are even and a rank has one."""
    counts, layout = block_counts(case), case.layout
    if len(set(counts)) == 1:
        return (f"--num-virtual-stages-per-pipeline-rank {layout.virtual_stages}",) if layout.virtual_stages > 1 else ()
    stages = [f"t*{count}" for count in counts]
    stages[0], stages[-1] = f"E,{stages[0]}", f"{stages[-1]},L"
    return (f"--pipeline-model-parallel-layout '{'|'.join(stages)}'",)


def _rounds(case: Case) -> tuple[str, ...]:
    """Micro-batches of an interleaved round, where they are not the pipeline's ranks."""
    layout, count = case.layout, case.workload.micro_batches
    if layout.virtual_stages == 1:
        return ()
    size = count // max(1, count // layout.pp)
    require(
        size >= layout.pp,
        f"workload.micro_batches: {count} to megatron, whose interleaved rounds are of at least pp({layout.pp})"
        " micro-batches; raise micro_batches",
    )
    return (f"--microbatch-group-size-per-virtual-pipeline-stage {size}",) if size != layout.pp else ()


def data_part(case: Case) -> Part:
    """Who shards what over the data-parallel ranks, which Megatron-LM counts itself: all ranks over tp, cp and pp."""
    layout = case.layout
    require(
        layout.offload is not Offload.PARAMETERS,
        "layout.offload: parameters to megatron, which offloads no parameters; use none, or optimizer with zero",
    )
    sharding = _sharding(case)
    buckets = layout.bucket_mib * MIB // GRADIENT_BYTES
    offloads = layout.offload is Offload.OPTIMIZER
    arguments = given(
        *sharding,
        "--overlap-grad-reduce" if layout.fsdp == 1 and layout.zero < 2 and layout.replica_ranks > 1 else None,
        f"--ddp-bucket-size {buckets}" if buckets else None,
        "--optimizer-cpu-offload --use-precision-aware-optimizer" if offloads else None,
        "--grad-reduce-in-bf16" if layout.reduce_type is ReduceType.BF16 else None,
    )
    return Part("data parallelism", arguments, _unsaid(layout, uses_torch_fsdp(case)))


def uses_torch_fsdp(case: Case) -> bool:
    """Can torch's FSDP2 shard it there? Megatron-LM takes it without pipeline, replicas, a tied head and fp16."""
    layout = case.layout
    is_plain = layout.pp == 1 and layout.dp == 1 and not case.model.tied
    return layout.fsdp > 1 and is_plain and case.workload.precision is not Precision.FP16_MIXED


def _sharding(case: Case) -> tuple[str, ...]:
    layout = case.layout
    if uses_torch_fsdp(case):
        keeps = layout.reshard_after_forward is False
        return given(
            "--use-torch-fsdp2",
            "--torch-fsdp2-no-reshard-after-forward" if keeps else None,
            "--no-gradient-accumulation-fusion",
            "--ckpt-format torch_dist",
        )
    if layout.fsdp == 1 and layout.zero < 2:
        return ("--use-distributed-optimizer",) if layout.zero else ()
    return given(
        "--use-megatron-fsdp --use-distributed-optimizer",
        f"--data-parallel-sharding-strategy {'optim_grads' if layout.zero == 2 else 'optim_grads_params'}",
        f"--num-distributed-optimizer-instances {layout.dp}" if layout.fsdp > 1 and layout.dp > 1 else None,
        "--overlap-grad-reduce --overlap-param-gather",
        "--no-gradient-accumulation-fusion",
        "--ckpt-format fsdp_dtensor",
    )


def _unsaid(layout: Layout, is_torch: bool) -> tuple[str, ...]:
    lines = []
    if layout.is_deepspeed:
        how = "Megatron-FSDP" if layout.zero > 1 else "its distributed optimizer" if layout.zero else "its own DDP"
        lines.append(f"layout.engine deepspeed with zero {layout.zero}: Megatron-LM has {how} for it")
    elif layout.fsdp > 1 and not is_torch:
        lines.append(f"layout.fsdp {layout.fsdp} by FSDP2: Megatron-FSDP, for its --use-torch-fsdp2 does not take this")
    elif layout.zero == 1:
        lines.append("layout.zero 1 by torch's ZeroRedundancyOptimizer: Megatron-LM's distributed optimizer")
    if layout.reduction is Reduction.MICRO_BATCH:
        lines.append("layout.reduction micro-batch: Megatron-LM keeps whole gradients and reduces them once a step")
    reshard = layout.reshard_after_forward
    if not isinstance(reshard, bool) or (reshard is False and not is_torch):
        lines.append(f"layout.reshard_after_forward {reshard}: Megatron-LM frees gathered parameters after forward")
    if layout.forward_prefetch != 0 or layout.backward_prefetch != 1:
        ahead = f"{layout.forward_prefetch}, {layout.backward_prefetch}"
        lines.append(f"layout.forward_prefetch, backward_prefetch {ahead}: Megatron-LM gathers ahead as it sees fit")
    return tuple(lines)


def recompute_part(case: Case) -> Part:
    """Activation checkpointing."""
    return Part("recomputation", _recompute(case), _unsaid_recompute(case.layout.recompute))


def _recompute(case: Case) -> tuple[str, ...]:
    mode = case.layout.recompute
    if mode.kind is RecomputeKind.NONE:
        return ()
    if mode.kind is RecomputeKind.SELECTIVE:
        return ("--recompute-granularity selective",)
    if mode.kind is RecomputeKind.EVERY:
        blocks = -(-max(block_counts(case)) // mode.every)
        return ("--recompute-granularity full", "--recompute-method block", f"--recompute-num-layers {blocks}")
    return ("--recompute-granularity full", "--recompute-method uniform", "--recompute-num-layers 1")


def _unsaid_recompute(mode: Recompute) -> tuple[str, ...]:
    if mode.kind is RecomputeKind.EVERY and mode.every > 1:
        return (f"layout.recompute {mode}: as many blocks of each stage, but its first ones, not blocks 0, n, 2n",)
    if mode.kind is RecomputeKind.SELECTIVE_OP:
        return ("layout.recompute selective-op: full recomputation, which keeps less and computes more",)
    return ()
