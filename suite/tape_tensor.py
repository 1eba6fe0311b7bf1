"""Tensor parallelism on a Tape: entering and leaving what is divided, the divided embedding, and the divided loss.

What parallelism/tensor/regions.py, tensor_styles.py and vocab_loss.py run on one rank. gloo copies what it gathers and
what it reduce-scatters in passing; NCCL does not.
"""

from __future__ import annotations

import math

from suite.operators import Array, DType, Flops, Kernel, OperatorKind, Size, Split
from suite.tape import ONE, Backend, Tape

POINTWISE = OperatorKind.POINTWISE


def enter(tape: Tape, name: str, x: Array, seq: Size) -> Array:
    """What columns read: the stream x [b, s/t, h] gathered to [b, s, h], or whole already; cast before, once for all
    its readers. Backward: the ranks' gradients of it are summed. Without tensor parallelism x itself."""
    if tape.share.tp == 1:
        return x
    kernels: list[Kernel] = []
    if x.dtype is not tape.numerics.compute:
        narrow = Array(f"{name} input", x.shape, tape.numerics.compute)
        kernels.append(Kernel("cast", (x,), (narrow,), gradients=(x,)))
        x = narrow
    if tape.share.sequence_parallel:
        whole = Array(f"{name} input, gathered", (x.shape[0], seq, *x.shape[2:]), x.dtype)
        kernels.append(
            Kernel(
                "gather_sequence", (x,), (whole,), gradients=(x,),
                forward_scratch=_gathering(tape, whole), backward_scratch=_scattering(tape, whole),
            )
        )  # fmt: skip
    else:
        whole = Array(f"{name} input, whole", x.shape, x.dtype)
        kernels.append(Kernel("sum_backward", (x,), (whole,), gradients=(x,), is_view=True))
    tape.operator(f"{name} entered", POINTWISE, kernels)
    return whole


def leave(tape: Tape, name: str, y: Array, part: Size) -> Array:
    """The sum of the ranks' y [b, s, h]: in place, or this rank's part of the sequence, [b, s/t, h]. Without tensor
    parallelism y itself."""
    if tape.share.tp == 1:
        return y
    out = Array(f"{name} output, summed", (y.shape[0], part, *y.shape[2:]), y.dtype)
    if tape.share.sequence_parallel:
        kernel = Kernel(
            "scatter_sequence", (y,), (out,), gradients=(y,),
            forward_scratch=_scattering(tape, y), backward_scratch=_gathering(tape, y),
            prepared_scratch=y.nbytes * (y.shape[0].value > 1),
        )  # fmt: skip
    else:
        kernel = Kernel("sum", (y,), (out,), passes=(y,), is_view=True)
    tape.operator(f"{name} left", POINTWISE, [kernel])
    return out


def _gathering(tape: Tape, whole: Array) -> int:
    """Beside the result: gloo's flat copy; then, of several sequences, the parts one after the other."""
    return whole.nbytes if tape.backend is Backend.CPU or whole.shape[0].value > 1 else 0


def _scattering(tape: Tape, whole: Array) -> int:
    """Beside the result: of several sequences the parts one after the other, and gloo's copy of them."""
    return whole.nbytes * ((whole.shape[0].value > 1) + (tape.backend is Backend.CPU))


def rows(tape: Tape, name: str, x: Array, width: Size, bias: bool, part: Size) -> Array:
    """A projection of which each rank reads some input features; the bias is added to the sum. Its frame holds x until
    it returns."""
    if tape.share.tp == 1:
        return tape.linear(name, x, width, bias, Split.ROW)
    y = leave(tape, name, tape.linear(name, x, width, False, Split.ROW), part)
    if bias:
        y = _add_bias(tape, name, y, width)
    tape.operator(f"{name} returns", POINTWISE, [Kernel("release", (x,))])
    return y


def _add_bias(tape: Tape, name: str, y: Array, width: Size) -> Array:
    """y + bias, the bias whole on every rank."""
    weight = tape.weight(f"{name}.bias", (width,))
    out = Array(f"{name} output and bias", y.shape, y.dtype)
    kernels: list[Kernel] = []
    read: Array = weight
    if weight.dtype is not y.dtype:
        read = Array(f"{name} bias, cast", weight.shape, y.dtype)
        kernels.append(Kernel("cast", (weight,), (read,), gradients=(weight,)))
    kernels.append(Kernel("add", (y, read), (out,), passes=(y,), gradients=(read,)))
    tape.operator(f"{name} bias", POINTWISE, kernels, (weight,), Flops(y.elements, y.elements))
    return out


def vocabulary_rows(tape: Tape, name: str, ids: Array, vocab: Size, width: Size, part: Size) -> Array:
    """An embedding of which each rank has some rows: it looks up its own, blanks the others, and the ranks' are summed.
    Keeps its places of the ids, and which are foreign."""
    if tape.share.tp == 1:
        return tape.embedding(name, ids, vocab, width)
    foreign = Array(f"{name} foreign ids", ids.shape, DType.BOOL)
    own = Array(f"{name} own ids", ids.shape, DType.INT64)
    tape.operator(
        f"{name} ids", POINTWISE,
        [Kernel("compare", (ids,), (foreign,), forward_scratch=2 * foreign.nbytes), Kernel("sub", (ids,), (own,))],
    )  # fmt: skip
    x = tape.embedding(name, own, vocab, width)
    blanked = Array(f"{name} output, foreign rows blank", x.shape, x.dtype)
    tape.operator(
        f"{name} blanks", POINTWISE, [Kernel("masked_fill", (x, foreign), (blanked,), (foreign,), gradients=(x,))]
    )
    y = leave(tape, name, blanked, part)
    tape.operator(f"{name} returns", POINTWISE, [Kernel("release", (x, foreign))])
    return y


def own_places(tape: Tape, name: str, places: Array, part: Size) -> Array:
    """Under sequence parallelism this rank's part of the positions."""
    if not tape.share.sequence_parallel:
        return places
    mine = Array(name, (part,), places.dtype)
    tape.operator(name, POINTWISE, [Kernel("slice", (places,), (mine,), is_view=True)])
    return mine


def vocabulary_cross_entropy(tape: Tape, name: str, logits: Array, labels: Array, is_mean: bool) -> None:
    """Cross-entropy on this rank's columns of the logits, [b, s, V/t] in fp32. Keeps the shares exp(logit) / sum, each
    label's column and which are foreign. Backward holds the shares and the logits' gradient."""
    rows = (Size("b*s", math.prod(size.value for size in logits.shape[:-1])), ONE)
    shares = Array("shares of each token's logits", logits.shape, DType.FP32)
    columns = Array("labels' columns", rows, DType.INT64)
    foreign = Array("foreign labels", rows, DType.BOOL)
    loss = Array("loss", (), DType.FP32)
    figure = rows[0].value * DType.FP32.nbytes  # one of each token
    kernel = Kernel(
        "vocabulary_cross_entropy", (logits, labels), (loss, shares, columns, foreign), (shares, columns, foreign),
        (logits,),
        # the largest logit, the sums (two), a logarithm and the loss; the mean's gradient and the label's
        forward_scratch=5 * figure, backward_scratch=(2 if is_mean else 1) * figure,
    )  # fmt: skip
    size = logits.elements
    tape.operator(name, OperatorKind.LOSS, [kernel], flops=Flops(5 * size, 3 * size))
