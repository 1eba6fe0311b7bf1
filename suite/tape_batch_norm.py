"""Batch normalisation on a Tape: what suite/models/batch_norm.py runs."""

from __future__ import annotations

from suite.operators import Array, DType, Flops, Kernel, OperatorKind, Weight
from suite.tape import Backend, Tape


def batch_norm(tape: Tape, name: str, x: Array, bias: bool) -> Array:
    """Each channel by its mean and variance over all tokens. Keeps x, and a mean and 1/std a channel. The CPU's kernel
    makes its sums in rows beside them, and backward first allocates the input's gradient once for nothing
    (aten/src/ATen/native/Normalization.cpp)."""
    width = x.shape[-1]
    parts = ("weight", "bias") if bias else ("weight",)
    weights = tuple(Weight(f"{name}.{part}", (width,), tape.numerics.weights) for part in parts)
    y = Array(f"{name} output", x.shape, x.dtype)
    moments = (Array(f"{name} mean", (width,), DType.FP32), Array(f"{name} 1/std", (width,), DType.FP32))
    is_cpu = tape.backend is Backend.CPU
    kernel = Kernel(
        "batch_norm", (x, *weights), (y, *moments), (x, *moments), (x, *weights),
        forward_scratch=3 * moments[0].nbytes if is_cpu else 0, backward_scratch=x.nbytes if is_cpu else 0,
    )  # fmt: skip
    tape.operator(name, OperatorKind.NORM, [kernel], weights, Flops(8 * x.elements, 16 * x.elements))
    return y


def running_statistics(names: tuple[str, ...], width: Array) -> tuple[Array, ...]:
    """The buffers of norms: a running mean and variance a channel, of so wide a stream."""
    shape = width.shape[-1:]
    return tuple(Array(f"{name}.{part}", shape, DType.FP32) for name in names for part in ("mean", "variance"))
