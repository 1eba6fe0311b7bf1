"""Expert parallelism on a Tape: rows sent to the ranks of their experts, and outputs back (parallelism/expert)."""

from __future__ import annotations

from dataclasses import dataclass

from suite.operators import Array, Derivative, DType, Kernel, OperatorKind, Size
from suite.share import Share
from suite.tape import Tape
from suite.tape_attention import release

POINTWISE = OperatorKind.POINTWISE
#: operators whose first kernel or second sends rows, and the one that sends their counts
DISPATCH, COMBINE, COUNTS = "mlp.dispatch", "mlp.combine outputs", "mlp.exchange counts"


@dataclass(frozen=True)
class Load:
    """What is known of a block's routing: how many rows reach this rank's experts, or how uneven it is."""

    recorded: int | None = None
    imbalance: float = 1.0

    def received(self, sent: int, share: Share) -> int:
        """Rows that reach this rank's experts from all ranks, each of which sends so many: as many as it sends, times
        the imbalance on the busiest rank; the others share the rest, rounded up."""
        if self.recorded is not None:
            return self.recorded
        busiest = round(sent * self.imbalance)
        return busiest if share.is_busiest else -(-(share.ep * sent - busiest) // (share.ep - 1))


def load_of(share: Share, block: int, imbalance: float) -> Load:
    """A block's load on a rank with that share."""
    return Load(share.received[block]) if share.received else Load(imbalance=imbalance)


@dataclass(frozen=True)
class Exchanged:
    """What a rank's experts are given: rows, how many of them each has, and what puts them into order and back."""

    rows: Array
    counts: Array
    order: Array
    inverse: Array


def dispatch(tape: Tape, rows: Array, counts: Array, received: int) -> Exchanged:
    """Rows [R, h] sorted by expert and their counts [E] -> those of all ranks for the experts here, so many of them.

    The ranks tell each other counts; from them come the order and its inverse, sorted of each row's expert. Rows that
    came lie beside their ordered copy until the call is over.
    """
    came = Size("R", received)
    coming = Array("mlp: counts coming", counts.shape, DType.INT64)
    here = Array("mlp: counts here", (Size("E/ep", counts.elements // tape.share.ep),), DType.INT64)
    order, inverse = (Array(f"mlp: {name}", (came,), DType.INT64) for name in ("order of rows", "its inverse"))
    tape.operator(COUNTS, POINTWISE, [
        Kernel("all_to_all", (counts,), (coming,)),
        Kernel("argsort", (coming,), (order,), forward_scratch=2 * order.nbytes),
        Kernel("scatter", (order,), (inverse,), forward_scratch=order.nbytes),
        Kernel("sum", (coming,), (here,)),
    ])  # fmt: skip
    release(tape, "mlp.exchange counts returns", coming)
    shape = (came, rows.shape[1])
    arrived, ordered = (Array(f"mlp: rows {what}", shape, rows.dtype) for what in ("as they came", "for experts here"))
    picked, gradient = Array("mlp: gradients to send", shape, rows.dtype), Array("gradient", rows.shape, rows.dtype)
    back = Derivative(
        (Kernel("index_select", (), (picked,)), Kernel("all_to_all", (picked,), (gradient,))), (gradient,)
    )
    tape.operator(DISPATCH, POINTWISE, [
        Kernel("all_to_all", (rows,), (arrived,)),
        Kernel("index_select", (arrived, rows), (ordered,), (inverse,), (rows,), derivative=back),
    ])  # fmt: skip
    return Exchanged(ordered, here, order, inverse)


def combine(tape: Tape, outputs: Array, given: Exchanged, rows: Array) -> Array:
    """The outputs of a rank's experts -> those of the rows that it sent, in the order of `rows`."""
    picked = Array("mlp: outputs to send", outputs.shape, outputs.dtype)
    y = Array("mlp: outputs of rows", rows.shape, outputs.dtype)
    arrived, gradient = (
        Array(f"mlp: {what}", outputs.shape, outputs.dtype) for what in ("gradients as they came", "gradient")
    )
    back = Derivative(
        (Kernel("all_to_all", (), (arrived,)), Kernel("index_select", (arrived,), (gradient,))), (gradient,)
    )
    tape.operator(COMBINE, POINTWISE, [
        Kernel("index_select", (outputs, given.inverse), (picked,)),
        Kernel("all_to_all", (picked, outputs), (y,), (given.order,), (outputs,), derivative=back),
    ])  # fmt: skip
    release(tape, "mlp.exchange returns", given.rows, given.counts, given.order, given.inverse, outputs)
    return y
