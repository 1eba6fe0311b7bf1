"""What a Megatron-LM rank holds between steps: its parameters, and the bytes each costs."""

from __future__ import annotations

from dataclasses import dataclass

from memory.megatron.run import MegatronOptimizer, MegatronRun
from suite.models.decoder import Activation, Norm, Position
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
    the partition's gradients while it steps (deepspeed/runtime/zero/stage_1_and_2.py, step); its bf16 optimizer
    accumulates in fp32 as well (deepspeed/runtime/bf16_optimizer.py).
    """
    replicas = run.dp * run.cp
    if run.optimizer is MegatronOptimizer.MIXED:
        return StateBytes(2, 4, 12, 0, "Megatron-LM, Float16OptimizerWithFloat16Params")
    if run.optimizer is MegatronOptimizer.DISTRIBUTED:
        return StateBytes(2, 4, 12 / replicas, 0, "Megatron-LM, docs/source/api-guide/dist_optimizer.md")
    if run.optimizer is MegatronOptimizer.DEEPSPEED_FP16:
        return StateBytes(2, 2, 12 / replicas, 4 / replicas, "DeepSpeed, runtime/zero/stage_1_and_2.py")
    return StateBytes(2, 2 + 4, 12 / replicas, 0, "DeepSpeed, runtime/bf16_optimizer.py")


def layer_parameters(run: MegatronRun) -> int:
    """Parameters of a block on one rank: matrices divided by tp, norms and the biases of row-divided ones whole."""
    m, t = run.model, run.tp
    gates = 2 if m.activation is Activation.SWIGLU else 1
    kv = max(m.kv_heads // t, 1) * m.head_dim
    matrices = m.hidden * (2 * m.q_dim // t + 2 * kv) + (gates + 1) * m.hidden * m.ffn // t
    norms = 2 * m.hidden * norm_vectors(run)
    split_bias = (m.q_dim // t + 2 * kv) * m.projection_bias + gates * m.ffn // t * m.bias
    return matrices + norms + split_bias + 2 * m.hidden * m.bias


def norm_vectors(run: MegatronRun) -> int:
    """Vectors of a norm: LayerNorm has a bias."""
    return 2 if run.model.norm is Norm.LAYERNORM else 1


def stage_parameters(run: MegatronRun, stage: int) -> dict[str, int]:
    """Parameters of a stage on one rank, by what they are. The last stage has the head: a copy of the embedding where
    they are tied and the first stage is another."""
    m = run.model
    parts = {"blocks": run.stage_layers[stage] * layer_parameters(run)}
    if stage == 0:
        parts["embedding"] = run.vocab_rows * m.hidden
        if m.position is Position.LEARNED:
            parts["positions"] = m.max_positions * m.hidden
    if stage == run.pp - 1:
        parts["final norm"] = m.hidden * norm_vectors(run)
        if not m.tied or run.pp > 1:
            parts["head"] = run.vocab_rows * m.hidden
    return parts


def held_bytes(run: MegatronRun, stage: int) -> tuple[tuple[Component, int, str, str], ...]:
    """(component, bytes, formula, source) of what lives between steps."""
    each, count = state_bytes(run), sum(stage_parameters(run, stage).values())
    rows = (
        (Component.PARAMETERS, each.parameters, "16-bit weights"),
        (Component.GRADIENTS, each.gradients, "gradient buffer"),
        (Component.OPTIMIZER, each.optimizer, "fp32 master weights and two moments"),
    )
    return tuple((part, round(size * count), f"{name}: parameters*{size:g}", each.source) for part, size, name in rows)
