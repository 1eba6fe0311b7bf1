"""The head's loss on a Tape: cross-entropy over all logits at once, or over slices of the sequence."""

from __future__ import annotations

from suite.operators import Array, DType, Flops, Kernel, OperatorKind, Size, Split, Weight
from suite.tape import Tape
from suite.tape_tensor import vocabulary_cross_entropy


def cross_entropy(
    tape: Tape, name: str, logits: Array, labels: Array, is_mean: bool = True, is_smoothed: bool = False
) -> None:
    """Negative log-likelihood, mean or sum. Logits are widened to fp32; keeps the log-probabilities.

    Backward holds three fp32 arrays of the logits' size at once: the log-probabilities, the gradient of
    the selection (dense) and the gradient of the logits.
    """
    if tape.share.tp == 1:
        whole_cross_entropy(tape, name, logits, labels, is_smoothed)
        return
    wide, kernels = _widened(logits)
    tape.operator(f"{name} input", OperatorKind.POINTWISE, kernels)
    vocabulary_cross_entropy(tape, name, wide, labels, is_mean)


def whole_cross_entropy(tape: Tape, name: str, logits: Array, labels: Array, is_smoothed: bool = False) -> None:
    """The same over logits that every rank has whole. With smoothed labels the log-probabilities are summed over the
    vocabulary too: that sum's gradient is an expanded view, which the selection's is added to in a new array."""
    wide, kernels = _widened(logits)
    log_probs = Array("log-probabilities", logits.shape, DType.FP32)
    loss = Array("loss", (), DType.FP32)
    kernels.append(Kernel("log_softmax", (wide,), (log_probs,), (log_probs,), (wide,)))
    kernels.append(Kernel("nll_loss", (log_probs, labels), (loss,), (log_probs, labels), (log_probs,)))
    if is_smoothed:
        sums = Array("log-probabilities, summed", logits.shape[:-1], DType.FP32)
        negative = Array("log-probabilities, summed, negated", logits.shape[:-1], DType.FP32)
        kernels.append(Kernel("sum", (log_probs,), (sums,), passes=(log_probs,), through_view=True))
        kernels.append(Kernel("neg", (sums,), (negative,), gradients=(sums,)))
        kernels.append(Kernel("masked_fill", (negative,), (), (), (negative,)))
        kernels.append(Kernel("release", (wide,)))  # the caller's until the loss is there
    size = logits.elements
    tape.operator(name, OperatorKind.LOSS, kernels, flops=Flops(5 * size, 5 * size))


def _widened(logits: Array) -> tuple[Array, list[Kernel]]:
    if logits.dtype is DType.FP32:
        return logits, []
    wide = Array("fp32 logits", logits.shape, DType.FP32)
    return wide, [Kernel("cast", (logits,), (wide,), gradients=(logits,))]


def chunked_head(
    tape: Tape, name: str, hidden: Array, labels: Array, vocab: Size, tied_to: str | None, chunks: int,
    bias: bool = False, is_smoothed: bool = False,
) -> None:  # fmt: skip
    """Head and cross-entropy over slices of the sequence, each rerun in backward (torch.chunk's split)."""
    batch, seq, width = hidden.shape
    weights: tuple[Weight, ...] = (tape.weight(f"{name}.weight", (vocab, width), Split.VOCAB, tied_to),)
    weights += (tape.bias(name, vocab, Split.VOCAB),) if bias else ()
    step = -(-seq.value // chunks)
    lengths = [min(step, seq.value - start) for start in range(0, seq.value, step)]
    pieces = [Array("hidden slice", (batch, Size("c", length), width), hidden.dtype) for length in lengths]
    split = Kernel("split", (hidden,), tuple(pieces), gradients=(hidden,), is_view=True)
    tape.operator("split", OperatorKind.POINTWISE, [split])
    for index, piece in enumerate(pieces):
        start = len(tape.body)
        # a slice of the sequence is not contiguous: F.linear copies it before it multiplies
        logits = tape.project(name, piece, weights, is_strided=batch.value > 1)
        goal = Array("labels slice", piece.shape[:2], DType.INT64)
        is_flat = batch.value == 1  # else flattening a slice of the sequence copies it
        flatten = Kernel("view" if is_flat else "clone", (labels,), (goal,), is_view=is_flat)
        tape.operator("labels", OperatorKind.POINTWISE, [flatten])
        cross_entropy(tape, "loss", logits, goal, is_mean=False, is_smoothed=is_smoothed)
        tape.region(f"loss slice {index}", start, (piece, labels), ())
