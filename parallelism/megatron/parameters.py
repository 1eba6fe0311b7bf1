"""Parameters that a rank of a Megatron-LM run holds."""

from __future__ import annotations

from parallelism.megatron.run import MegatronRun
from suite.models.decoder import Activation, Norm, Position


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
