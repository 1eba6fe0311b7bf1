"""Positions in the operator ledger: what is added to embeddings, and tables and biases that blocks share."""

from __future__ import annotations

from suite.models.decoder import DecoderSpec, Position
from suite.operators import Array, DType, Flops, Kernel, OperatorKind, Size
from suite.share import Share
from suite.spec import AttentionKernel
from suite.tape import Numerics, Tape

#: what is held for good, and what is made once a micro-batch
Tables = tuple[tuple[Array, ...], tuple[Array, ...]]


def add_sinusoids(tape: Tape, x: Array, part: Size) -> Array:
    """x sqrt(h) + the table's rows of this rank's tokens, [s, h]: a view of it, cast where the stream is not fp32, or
    gathered where they are not one after the other. Keeps nothing."""
    scaled, out = Array("embedding * sqrt(h)", x.shape, x.dtype), Array("embedding and sinusoids", x.shape, x.dtype)
    kernels = [Kernel("mul", (x,), (scaled,), gradients=(x,))]
    rows = Array("sinusoids of this step", (part, x.shape[-1]), DType.FP32)
    read: tuple[Array, ...] = ()
    if tape.share.cp > 1:
        kernels.append(Kernel("index", (), (rows,)))
        read = (rows,)
    if x.dtype is not DType.FP32:
        cast = Array("sinusoids of this step, cast", rows.shape, x.dtype)
        kernels.append(Kernel("cast", read, (cast,)))
        read = (cast,)
    kernels.append(Kernel("add", (scaled, *read), (out,), passes=(scaled,)))
    tape.operator("embedding and sinusoids", OperatorKind.POINTWISE, kernels, flops=Flops(2 * x.elements, x.elements))
    return out


def position_tables(
    spec: DecoderSpec, sizes: tuple[Size, Size], numerics: Numerics, share: Share, kernel: AttentionKernel
) -> Tables:
    """Buffers, and what each micro-batch makes once for all blocks: with rotation copies of its tables, where their
    type is not fp32 or the rank's rows are gathered; with ALiBi and the fused kernel, which keeps them, the biases of
    every pair of tokens and head. sizes: tokens of the rank, and its heads."""
    seq, heads = sizes
    places = Size("P", spec.max_positions)
    match spec.position:
        case Position.ROPE:
            return _rope_tables(spec, seq, numerics, share)
        case Position.SINUSOIDAL:
            return (Array("sinusoids.table", (places, Size("h", spec.hidden)), DType.FP32),), ()
        case Position.ALIBI if kernel is AttentionKernel.FLASH:
            return (), (Array("ALiBi's biases of this step", (heads, seq, seq), numerics.compute),)
    return (), ()


def _rope_tables(spec: DecoderSpec, seq: Size, numerics: Numerics, share: Share) -> Tables:
    """Cosines and sines."""
    half = Size("r/2", spec.rotary_dim // 2)
    buffers = tuple(Array(f"rope.{name}", (Size("P", spec.max_positions), half), DType.FP32) for name in ("cos", "sin"))
    if numerics.compute is DType.FP32 and share.cp == 1:
        return buffers, ()
    shape = (seq, half)
    return buffers, tuple(Array(f"rope {name} of this step", shape, numerics.compute) for name in ("cos", "sin"))
