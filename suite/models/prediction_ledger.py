"""Multi-token prediction on a Tape: what a decoder's Predictor runs around its block, and the losses of all depths."""

from __future__ import annotations

from suite.operators import Array, DType, Kernel, OperatorKind, Size, Split
from suite.tape import Tape
from suite.tape_loss import cross_entropy

POINTWISE = OperatorKind.POINTWISE


def slice_of(tape: Tape, name: str, x: Array, shape: tuple[Size, ...]) -> Array:
    """Some of a tensor's tokens: a view, whose gradient is as large as the tensor."""
    y = Array(name, shape, x.dtype)
    tape.operator(name, POINTWISE, [Kernel("slice", (x,), (y,), gradients=(x,), is_view=True)])
    return y


def look_up_again(tape: Tape, labels: Array, length: Size, vocab: Size, width: Size) -> Array:
    """The embedding of some of the labels, by the model's own table."""
    ids = Array("tokens one further on", (labels.shape[0], length), labels.dtype)
    weight = tape.weight("embedding.weight", (vocab, width), Split.VOCAB, "embedding.weight")
    y = Array("embedding of tokens one further on", (*ids.shape, width), tape.numerics.stream)
    copied = ids.nbytes if labels.shape[0].value > 1 else 0  # a slice of several sequences is not contiguous
    tape.operator(
        "embedding", OperatorKind.EMBEDDING,
        [
            Kernel("slice", (labels,), (ids,), is_view=True),
            Kernel("embedding", (ids, weight), (y,), (ids,), (weight,), forward_scratch=copied),
        ],
        (weight,),
    )  # fmt: skip
    return y


def beside(tape: Tape, name: str, left: Array, right: Array) -> Array:
    """[.., a] and [.., b] -> [.., a + b]."""
    width = Size("2h", left.shape[-1].value + right.shape[-1].value)
    y = Array(name, (*left.shape[:-1], width), left.dtype)
    kernel = Kernel("concatenate", (left, right), (y,), passes=(left, right), through_view=True)
    tape.operator(name, POINTWISE, [kernel])
    return y


def widened(tape: Tape, x: Array, kind: DType) -> Array:
    """x in the stream's type."""
    if x.dtype is kind:
        return x
    y = Array(f"{x.name} in {kind.label}", x.shape, kind)
    tape.operator("projection cast", POINTWISE, [Kernel("cast", (x,), (y,), gradients=(x,))])
    return y


def behind(tape: Tape, name: str, x: Array, y: Array) -> Array:
    """[b, S, h] and [b, n, h] -> [b, S + n, h]."""
    tokens = Size(f"{x.shape[1].symbol}+{y.shape[1].symbol}", x.shape[1].value + y.shape[1].value)
    out = Array(name, (x.shape[0], tokens, x.shape[2]), x.dtype)
    kernel = Kernel("concatenate", (x, y), (out,), passes=(x, y), through_view=True)
    tape.operator(name, POINTWISE, [kernel])
    return out


def several_heads(tape: Tape, hidden: Array, labels: Array, vocab: Size, tied_to: str | None, depths: int) -> None:
    """The head and its loss for each depth's tokens, one depth after another; nothing is rerun."""
    batch, _, width = hidden.shape
    lengths = [Size("s", labels.shape[1].value)]
    lengths += [Size(f"(s-{depth})", max(1, labels.shape[1].value - depth)) for depth in range(1, depths + 1)]
    pieces = [Array("hidden of a depth", (batch, length, width), hidden.dtype) for length in lengths]
    split = Kernel("split", (hidden,), tuple(pieces), gradients=(hidden,), is_view=True)
    tape.operator("split", POINTWISE, [split])
    weight = tape.weight("head.weight", (vocab, width), Split.VOCAB, tied_to)
    is_flat = batch.value == 1
    for depth, piece in enumerate(pieces):
        logits = tape.project("head", piece, (weight,), is_strided=not is_flat)
        goal = Array("labels of a depth", piece.shape[:2], DType.INT64)
        is_view = is_flat or depth == 0
        flatten = Kernel("view" if is_view else "clone", (labels,), (goal,), is_view=is_view)
        tape.operator("labels", POINTWISE, [flatten])
        cross_entropy(tape, "loss", logits, goal)
