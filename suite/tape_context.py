"""The attention core of a context-parallel rank on a Tape: a ring, or all-to-alls around a core of some heads."""

from __future__ import annotations

from dataclasses import dataclass

from suite.layout import ContextMethod
from suite.operators import Array, Derivative, Kernel, OperatorKind, Size
from suite.spec import AttentionKernel
from suite.tape import Tape
from suite.tape_attention import Heads, eager, flash, release
from suite.tape_ring import ring


def spread_attention(tape: Tape, name: str, heads: Heads, kernel: AttentionKernel) -> Array:
    """Attention of this rank's tokens to the whole sequence's, [b, s/n, a, d]: the core that context parallelism puts
    into a block. `heads` are those of the rank's tokens; the tape's share says which rank it is, and how."""
    if tape.share.context is ContextMethod.RING:
        return ring(tape, name, heads, kernel)
    return ulysses(tape, name, heads, kernel)


def merge_spread_heads(tape: Tape, name: str, x: Array, heads: Size, kernel: AttentionKernel) -> Array:
    """[b, s/n, a, d] as [b, s/n, a d]: a copy only of what a ring leaves as [b, a, s/n, d], without the fused kernel.
    The ring takes a gradient that is strided."""
    is_ring = tape.share.context is ContextMethod.RING
    if not is_ring or kernel is AttentionKernel.FLASH or min(heads.value, x.shape[1].value) == 1:
        return x
    y = Array(name, x.shape, x.dtype)
    tape.operator(name, OperatorKind.POINTWISE, [Kernel("clone", (x,), (y,), passes=(x,))])
    return y


def ulysses(tape: Tape, name: str, heads: Heads, kernel: AttentionKernel) -> Array:
    """All-to-alls of queries, keys and values, the core on the whole sequence of a part of the heads, and an
    all-to-all back. Keeps what the core keeps.

    Each all-to-all sends a packed copy and receives as much; the packed one goes, and the received one is copied into
    order: to whole sequences where there are several, back to parts always.
    """
    ranks = tape.share.cp
    seq = Size("s", heads.seq.value * ranks)
    count, kv_count = (_part(size, ranks) for size in (heads.count, heads.kv_count))
    is_flash = kernel is AttentionKernel.FLASH
    is_ordered = is_flash or min(count.value, seq.value) == 1  # as [b, s, a, d], where products leave [b, a, s, d]
    several, one_token = heads.batch.value > 1, heads.batch.value * heads.seq.value == 1
    out_goes = _Move(packs=not one_token, unpacks=several)
    comes_back = _Move(packs=several or not is_ordered, unpacks=not one_token)

    def to_heads(letter: str, x: Array) -> Array:
        shape = (x.shape[0], seq, _part(x.shape[2], ranks))
        return _exchange(tape, f"{name} {letter} of some heads", x, shape, out_goes, comes_back)

    q, k, v = to_heads("queries", heads.q), to_heads("keys", heads.k), to_heads("values", heads.v)
    out = (flash if is_flash else eager)(tape, name, Heads(q, k, v, count, kv_count, heads.width))
    if not is_ordered:
        view = Array(out.name, out.shape, out.dtype)
        # the gradient comes as [b, s, a, d] and is copied
        kernel_order = Kernel("view", (out,), (view,), gradients=(out,), is_view=True)
        tape.operator(f"{name} order", OperatorKind.POINTWISE, [kernel_order])
        out = view
    y = _exchange(tape, f"{name} output of all heads", out, heads.q.shape, comes_back, out_goes)
    release(tape, f"{name} returns to its block", q, k, v)
    return y


@dataclass(frozen=True)
class _Move:
    """An all-to-all: must what it sends, and what it receives, be copied into order?"""

    packs: bool
    unpacks: bool

    def kernels(self, x: Array) -> tuple[list[Kernel], Array]:
        """Up to what is received, as large as x; x outlives them."""
        packed, received = (Array(f"all-to-all: {what}", x.shape, x.dtype) for what in ("packed", "received"))
        pack = [Kernel("pack", (), (packed,))] if self.packs else []
        return [*pack, Kernel("all_to_all", (packed,) if self.packs else (), (received,))], received


def _exchange(tape: Tape, name: str, x: Array, shape: tuple[Size, ...], there: _Move, back: _Move) -> Array:
    """x with its elements exchanged among the ranks, of that shape; its gradient comes the other way."""
    y, gradient = Array(name, shape, x.dtype), Array(f"gradient of {x.name}", x.shape, x.dtype)
    kernels, received = there.kernels(x)
    returning, returned = back.kernels(x)
    returning.append(Kernel("unpack", (returned,), (gradient,), is_view=not back.unpacks))
    last = Kernel(
        "unpack", (received, x), (y,), gradients=(x,), derivative=Derivative(tuple(returning), (gradient,)),
        is_view=not there.unpacks,
    )  # fmt: skip
    tape.operator(name, OperatorKind.POINTWISE, [*kernels, last])
    return y


def _part(size: Size, parts: int) -> Size:
    return Size(f"{size.symbol}/cp", size.value // parts)
