"""What differs between Megatron-LM's engine and the one that a case's estimate is of: bytes that a rank holds."""

from __future__ import annotations

from memory.megatron.estimate import estimate_megatron
from memory.megatron.state import state_bytes
from parallelism.megatron.run import AttentionCore, MegatronOptimizer, MegatronRun, PipelineMemory
from parallelism.schedules.stages import block_counts
from suite.case import Case
from suite.layout import RecomputeKind
from suite.spec import AttentionKernel, OptimizerKind, Precision
from suite.units import bytes_text

#: recomputation as the export has it: every n-th block is another choice of blocks, which MegatronRun has not
MODELLED = (RecomputeKind.NONE, RecomputeKind.SELECTIVE, RecomputeKind.FULL, RecomputeKind.SELECTIVE_OP)


def run_of(case: Case) -> MegatronRun | None:
    """The run that the exported arguments describe; None where our formulas for Megatron-LM know no such run: sharded
    parameters or gradients, latent attention, experts, a window, every n-th block, AdamW's neighbours, other
    formats."""
    layout, model, workload = case.layout, case.decoder, case.workload
    is_known = (
        layout.fsdp == 1
        and layout.zero < 2
        and layout.offload.value == "none"
        and model.latent is None
        and model.experts is None
        and model.window is None
        and layout.recompute.kind in MODELLED
        and workload.optimizer is OptimizerKind.ADAMW
        and workload.precision in (Precision.BF16_MIXED, Precision.BF16, Precision.FP16_MIXED)
    )
    if not is_known:
        return None
    counts = block_counts(case)
    kind = layout.recompute.kind
    return MegatronRun(
        model=model, seq_len=workload.seq_len, micro_batch=workload.micro_batch, micro_batches=workload.micro_batches,
        tp=layout.tp, cp=layout.cp, pp=layout.pp, dp=layout.dp,
        sequence_parallel=layout.tp > 1 and layout.sequence_parallel,
        schedule=PipelineMemory.INTERLEAVED if layout.virtual_stages > 1 else PipelineMemory.ONE_F_ONE_B,
        chunks=layout.virtual_stages,
        stage_layers=tuple(sum(counts[rank :: layout.pp]) for rank in range(layout.pp)),
        optimizer=MegatronOptimizer.DISTRIBUTED if layout.zero else MegatronOptimizer.MIXED,
        recompute=RecomputeKind.FULL if kind is RecomputeKind.SELECTIVE_OP else kind,
        attention=AttentionCore.UNFUSED if workload.attention is AttentionKernel.EAGER else AttentionCore.FUSED,
        dropout=model.dropout > 0,
    )  # fmt: skip


def engine_lines(case: Case) -> tuple[str, ...]:
    """What Megatron-LM's rank holds instead of what the estimate counts, a line."""
    device = case.cluster.device
    lines = ("cluster.device cpu: Megatron-LM trains on CUDA devices alone",) if device == "cpu" else ()
    run = run_of(case)
    if run is None:
        return (
            *lines,
            "memory: the estimate is of this project's engines; Megatron-LM's for this case is not modelled",
        )
    each = state_bytes(run)
    stage, peak = max(
        ((stage, estimate_megatron(run, stage).peak_bytes) for stage in range(run.pp)), key=lambda found: found[1]
    )
    where = f" on stage {stage}" if run.pp > 1 else ""
    return (
        *lines,
        f"memory: Megatron-LM keeps {each.parameters:g} + {each.gradients:g} + {each.optimizer:g} bytes a parameter"
        f" (16-bit weights, fp32 gradients, fp32 masters and moments) and Transformer Engine's kernels their own"
        f" arrays: a peak of {bytes_text(peak)} a rank{where} by our formulas for it, beside the case's own estimate",
    )
