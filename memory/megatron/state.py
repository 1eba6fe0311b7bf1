"""What a Megatron-LM rank holds between steps: its parameters, and the bytes each costs."""

from __future__ import annotations

from dataclasses import dataclass

from parallelism.megatron.parameters import stage_parameters
from parallelism.megatron.run import MegatronOptimizer, MegatronRun
from suite.record import Component


@dataclass(frozen=True)
class StateBytes:
    """Bytes a parameter, by component; `passing` only while the optimizer steps."""

    parameters: float
    gradients: float
    optimizer: float
    passing: float
    source: str


def state_bytes(run: MegatronRun) -> StateBytes:
    """Bytes a parameter of a rank's optimizer.

    Megatron: 2 + 4 + 12, of which its distributed optimizer divides the 12 over dp cp ranks (docs: distributed
    optimizer; megatron/training/theoretical_memory_usage.py). DeepSpeed's ZeRO-1: 16-bit gradients, and an fp32 copy of
    the partition's gradients while it steps (deepspeed/runtime/zero/stage_1_and_2.py, step), of all of them without
    ZeRO; its bf16 optimizer accumulates in fp32 as well (deepspeed/runtime/bf16_optimizer.py).
    """
    replicas = run.dp * run.cp
    if run.optimizer is MegatronOptimizer.MIXED:
        return StateBytes(2, 4, 12, 0, "Megatron-LM, Float16OptimizerWithFloat16Params")
    if run.optimizer is MegatronOptimizer.DISTRIBUTED:
        return StateBytes(2, 4, 12 / replicas, 0, "Megatron-LM, docs/source/api-guide/dist_optimizer.md")
    if run.optimizer is MegatronOptimizer.DEEPSPEED_WHOLE:
        return StateBytes(2, 2, 12, 4, "DeepSpeed, runtime/fp16/fused_optimizer.py")
    if run.optimizer is MegatronOptimizer.DEEPSPEED_FP16:
        return StateBytes(2, 2, 12 / replicas, 4 / replicas, "DeepSpeed, runtime/zero/stage_1_and_2.py")
    return StateBytes(2, 2 + 4, 12 / replicas, 0, "DeepSpeed, runtime/bf16_optimizer.py")


def held_bytes(run: MegatronRun, stage: int) -> tuple[tuple[Component, int, str, str], ...]:
    """(component, bytes, formula, source) of what lives between steps."""
    each, count = state_bytes(run), sum(stage_parameters(run, stage).values())
    rows = (
        (Component.PARAMETERS, each.parameters, "16-bit weights"),
        (Component.GRADIENTS, each.gradients, "gradient buffer"),
        (Component.OPTIMIZER, each.optimizer, "fp32 master weights and two moments"),
    )
    return tuple((part, round(size * count), f"{name}: parameters*{size:g}", each.source) for part, size, name in rows)
