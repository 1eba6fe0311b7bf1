"""What a Megatron-LM block keeps for its backward pass, array by array, in 16 bits (arXiv:2205.05198, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

from parallelism.megatron.run import AttentionCore, CrossEntropy, MegatronRun
from suite.layout import RecomputeKind
from suite.models.decoder import Activation, Position

KORTHIKANTI = "arXiv:2205.05198, section 4"
ENGINE = "Transformer Engine: LayerNormLinear keeps the norm's input and output"


@dataclass(frozen=True)
class Kept:
    """An array that outlives the forward pass."""

    name: str
    nbytes: int
    formula: str
    source: str = KORTHIKANTI


def block_arrays(run: MegatronRun) -> tuple[Kept, ...]:
    """Every array that a block without recomputation keeps for one micro-batch. With unfused attention, dropout and
    GELU they sum to Korthikanti's s b h (10 + 24/t + 5 a s / (h t)), under sequence parallelism to all of it over t.

    Not counted: a norm's moments (4 or 8 bytes a token) and the fused attention's random state.
    """
    m, t, n = run.model, run.tp, run.tokens
    stream, kv = run.stream_tokens * m.hidden, max(m.kv_heads // t, 1) * m.head_dim
    gates = 2 if m.activation is Activation.SWIGLU else 1
    sp = "/t" if run.sequence_parallel else ""
    arrays = [
        Kept("stream into attention", 2 * stream, f"2*sbh{sp}"),
        Kept("attention norm's output", 2 * stream, f"2*sbh{sp}", ENGINE),
        Kept("queries, keys, values", 2 * n * (m.q_dim // t + 2 * kv), "2*sb*(a+2k)*d/t"),
        Kept("attention's output", 2 * n * m.q_dim // t, "2*sb*a*d/t"),
        Kept("stream into the MLP", 2 * stream, f"2*sbh{sp}"),
        Kept("MLP norm's output", 2 * stream, f"2*sbh{sp}", ENGINE),
        Kept("first product's output", 2 * n * gates * m.ffn // t, f"2*sb*{gates}f/t"),
        Kept("activation's output", 2 * n * m.ffn // t, "2*sb*f/t"),
    ]
    if m.position is Position.ROPE:
        rotated = 2 * n * (m.q_dim // t + kv)
        why = "values are a view of the joint product, which keeps its queries and keys beside the rotated ones"
        arrays.append(Kept("rotated queries and keys", rotated, "2*sb*(a+k)*d/t", why))
    if run.dropout:
        arrays.append(Kept("dropout masks of the stream", 2 * stream, f"2 masks*sbh{sp}"))
    return (*arrays, *_core_arrays(run))


def _core_arrays(run: MegatronRun) -> tuple[Kept, ...]:
    """What the attention core keeps: selective recomputation drops it."""
    scores = run.model.heads * run.seq_len * run.tokens // (run.tp * run.cp)
    if run.attention is AttentionCore.FUSED:
        rows = 4 * run.model.heads * run.tokens // run.tp
        return (Kept("attention's log-sum-exp", rows, "4*a*sb/t", "arXiv:2205.14135"),)
    if run.recompute is RecomputeKind.SELECTIVE:
        return ()
    arrays = [Kept("softmax's output", 2 * scores, "2*a*s^2*b/t")]
    if run.dropout:
        arrays += [
            Kept("dropout mask of the scores", scores, "a*s^2*b/t"),
            Kept("dropped-out scores", 2 * scores, "2*a*s^2*b/t"),
        ]
    return tuple(arrays)


def kept_arrays(run: MegatronRun) -> tuple[Kept, ...]:
    """What a block keeps between its forward and its backward pass: under full recomputation its input alone."""
    arrays = block_arrays(run)
    return arrays[:1] if run.recompute is RecomputeKind.FULL else arrays


def block_bytes(run: MegatronRun) -> int:
    """Bytes that a block keeps for one micro-batch."""
    return sum(array.nbytes for array in kept_arrays(run))


def block_backward(run: MegatronRun) -> tuple[Kept, ...]:
    """What a block's backward pass needs beside what was kept, at its highest: what it recomputes, the gradients of the
    first product of the MLP or of unfused scores, and a weight gradient where the product does not add it in place."""
    m, t, n = run.model, run.tp, run.tokens
    gates = 2 if m.activation is Activation.SWIGLU else 1
    passing = [Kept("gradient of the stream", 2 * n * m.hidden, "2*sbh", "autograd")]
    recomputed = sum(array.nbytes for array in block_arrays(run)) - block_bytes(run)
    if recomputed:
        passing.append(Kept("recomputed arrays of a block", recomputed, "kept arrays - input", "checkpointing"))
    mlp = [Kept("gradient of the MLP's first product", 2 * n * gates * m.ffn // t, f"2*sb*{gates}f/t", "autograd")]
    if not run.is_gradient_fused:
        mlp.append(Kept("its weight's gradient", 2 * m.hidden * gates * m.ffn // t, f"2*h*{gates}f/t", "16-bit"))
    scores = 2 * m.heads * run.seq_len * n // (t * run.cp)
    core = [Kept("gradients of scores, twice", 2 * scores, "2*2*a*s^2*b/t", "softmax and dropout in turn")]
    is_core = run.attention is AttentionCore.UNFUSED and 2 * scores > sum(array.nbytes for array in mlp)
    return (*passing, *(core if is_core else mlp))


def head_arrays(run: MegatronRun) -> tuple[Kept, ...]:
    """What the head and the loss hold at the loss's highest instant, the backward of the head: the final norm's arrays,
    logits, what cross-entropy keeps, their gradient, and the head's where the product does not add it in place."""
    m, n, rows = run.model, run.tokens, run.vocab_rows
    sp = "/t" if run.sequence_parallel else ""
    arrays = [
        Kept("final norm's input and output", 4 * run.stream_tokens * m.hidden, f"2*2*sbh{sp}"),
        Kept("logits", 2 * n * rows, "2*sb*V/t"),
        Kept("gradient of logits", 2 * n * rows, "2*sb*V/t", "autograd: in the logits' own format"),
        Kept("gradient of the last hidden state", 2 * n * m.hidden, "2*sbh", "autograd"),
    ]
    if run.cross_entropy is CrossEntropy.PARALLEL:
        source = "megatron/core/tensor_parallel/cross_entropy.py"
        arrays.append(Kept("softmax of the logits", 4 * n * rows, "4*sb*V/t", source))
    if not run.is_gradient_fused:
        arrays.append(Kept("gradient of the head", 2 * m.hidden * rows, "2*h*V/t", "16-bit"))
    if run.sequence_parallel and run.tp > 1:
        arrays.append(
            Kept("gathered hidden state", 2 * n * m.hidden, "2*sbh", "gathered again for the head's gradient")
        )
    return tuple(arrays)
