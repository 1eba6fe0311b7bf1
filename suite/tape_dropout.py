"""Dropout on a Tape: what suite/models/dropout.py runs, a mask drawn for whole sequences one at a time."""

from __future__ import annotations

from suite.operators import Array, DType, Kernel, OperatorKind, Size
from suite.tape import Tape


def dropout(tape: Tape, name: str, x: Array, rate: float, seq: Size) -> Array:
    """x [b, s, h] with a share of it blanked and the rest scaled; `seq`: tokens of the whole sequence, of which x may
    hold some. Keeps the mask, a byte an element. At rate 0 x itself."""
    if not rate:
        return x
    mask = Array(f"{name} mask", x.shape, DType.BOOL)
    blanked = Array(f"{name} blanked", x.shape, x.dtype)
    y = Array(f"{name} output", x.shape, x.dtype)
    kernels = [
        Kernel("draw", (), (mask,), forward_scratch=_drawing(tape, x, seq)),
        Kernel("masked_fill", (x, mask), (blanked,), (mask,), (x,)),
        Kernel("mul", (blanked,), (y,), gradients=(blanked,)),
        Kernel("release", (x,)),
    ]
    tape.operator(name, OperatorKind.POINTWISE, kernels)
    return y


def _drawing(tape: Tape, x: Array, seq: Size) -> int:
    """A draw in fp32 of each sequence beside the last one's, and the rows of it that context parallelism takes out."""
    batch, width = x.shape[0].value, x.shape[-1].value
    rows = seq.value * min(2, batch)
    if tape.share.cp > 1:
        rows += seq.value // tape.share.cp
    return rows * width * DType.FP32.nbytes
