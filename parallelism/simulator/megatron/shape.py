"""Shape: the numbers of a Megatron run that a block's work depends on. Runs that share it share their kernels."""

from __future__ import annotations

from dataclasses import dataclass

from parallelism.megatron.run import AttentionCore, CrossEntropy, MegatronOptimizer, MegatronRun
from suite.models.decoder import Activation, Norm, Position


@dataclass(frozen=True)
class Shape:
    """One micro-batch on one rank. Widths of what tensor parallelism divides are the rank's own: q, kv, ffn, heads,
    vocab. `stream` are the tokens of the residual stream, divided by tp under sequence parallelism."""

    seq: int
    tokens: int
    stream: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tp: int
    cp: int
    sequence_parallel: bool
    gated: bool
    biased: bool
    qkv_biased: bool
    rotary: bool
    layer_norm: bool
    dropout: bool
    attention: AttentionCore
    cross_entropy: CrossEntropy
    gradient_bytes: int
    """of an element of the buffer that weight gradients are added to"""
    fused_gradients: bool
    """the product of a weight gradient adds to that buffer by itself"""

    @classmethod
    def of(cls, run: MegatronRun) -> Shape:
        """The shape of a run."""
        m, t = run.model, run.tp
        return cls(
            seq=run.seq_len, tokens=run.tokens, stream=run.stream_tokens, hidden=m.hidden, heads=max(m.heads // t, 1),
            kv_heads=max(m.kv_heads // t, 1), head_dim=m.head_dim, ffn=m.ffn // t, vocab=run.vocab_rows, tp=t,
            cp=run.cp, sequence_parallel=run.sequence_parallel, gated=m.activation is Activation.SWIGLU,
            biased=m.bias, qkv_biased=m.projection_bias, rotary=m.position is Position.ROPE,
            layer_norm=m.norm is Norm.LAYERNORM, dropout=run.dropout, attention=run.attention,
            cross_entropy=run.cross_entropy, gradient_bytes=gradient_bytes(run),
            fused_gradients=run.is_gradient_fused and gradient_bytes(run) == 4,
        )  # fmt: skip

    @property
    def q(self) -> int:
        """Width of the rank's queries."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of the rank's keys, or values."""
        return self.kv_heads * self.head_dim


def gradient_bytes(run: MegatronRun) -> int:
    """Bytes of a gradient between micro-batches: fp32 under Megatron, 16 bits under DeepSpeed with fp16."""
    return 2 if run.optimizer in (MegatronOptimizer.DEEPSPEED_FP16, MegatronOptimizer.DEEPSPEED_WHOLE) else 4
