"""Linear attention in the operator ledger: what suite/models/linear_attention.py runs, kernel by kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from suite.models.linear_shape import chunk_tokens
from suite.operators import Array, Derivative, DType, Flops, Kernel, OperatorKind, Size
from suite.spec import AttentionKernel
from suite.tape import ONE, Tape
from suite.tape_attention import Heads

NAME = "attention.core"


@dataclass(frozen=True)
class _Chunks:
    """A sequence's heads cut into chunks."""

    heads: Heads
    tokens: int  # of a chunk

    @property
    def count(self) -> int:
        """Of a sequence."""
        return self.heads.seq.value // self.tokens

    @cached_property
    def all(self) -> Size:
        """Of all heads of all sequences: b a s / C."""
        heads = self.heads
        return Size("b*a*s/C", heads.batch.value * heads.count.value * self.count)

    @cached_property
    def rows(self) -> Size:
        """Tokens of a chunk."""
        return Size("C", self.tokens)

    @cached_property
    def wide(self) -> Size:
        """A value and its one."""
        return Size("(d+1)", self.heads.width.value + 1)

    @property
    def is_packed(self) -> bool:
        """Do heads lie before tokens only once they are copied?"""
        return self.heads.count.value > 1 and self.heads.seq.value > 1

    def array(self, name: str, *shape: Size, dtype: DType | None = None) -> Array:
        """A tensor of every chunk."""
        return Array(f"{NAME} {name}", (self.all, *shape), dtype or self.heads.q.dtype)


def linear_core(tape: Tape, heads: Heads, kernel: AttentionKernel) -> Array:
    """Causal linear attention in its parallel form. Keeps queries and keys before their features and, chunk by chunk,
    after them, values with their ones, masked products, the states that chunks find, and the sums."""
    chunks = _Chunks(heads, chunk_tokens(heads.seq.value, kernel))
    q, k, v, kernels = _packed(chunks)
    sums, steps = _sums(tape, chunks, (q, k, v))
    out, more = _shares(chunks, sums)
    kernels += [*steps, *more, Kernel("release", (q, k, v, sums))]
    tape.operator(NAME, OperatorKind.ATTENTION, kernels, flops=_flops(chunks))
    return out


def merge_shares(tape: Tape, x: Array, heads: Heads) -> Array:
    """[b, s, a, d] as [b, s, a d]: a copy, since heads lie before tokens."""
    if min(heads.count.value, heads.seq.value) == 1:
        return x
    y = Array(f"{NAME} output, contiguous", x.shape, x.dtype)
    tape.operator(y.name, OperatorKind.POINTWISE, [Kernel("clone", (x,), (y,), passes=(x,))])
    return y


def _packed(chunks: _Chunks) -> tuple[Array, Array, Array, list[Kernel]]:
    """Features of queries and of keys, and values with their ones, chunk by chunk.

    Gradients come back by heads and, of keys, transposed: before they can be a projection's again they are copied,
    those of keys in several chunks before the features' derivative, the others after it.
    """
    heads = chunks.heads
    is_transposed = chunks.count > 1
    q, kernels = _features(chunks, heads.q, "q", is_copied=False, is_copied_last=chunks.is_packed)
    is_split = heads.batch.value > 1 and heads.seq.value > 1  # and so no matrix while it is transposed
    k, steps = _features(chunks, heads.k, "k", is_transposed, not is_transposed and is_split)
    apart = Array(f"{NAME} values by heads", heads.v.shape, heads.v.dtype)
    v = chunks.array("values and ones", chunks.rows, chunks.wide)
    ones = Kernel("pad", (apart,), (v,), gradients=(apart,))
    return q, k, v, [*kernels, *steps, _view(heads.v, apart, is_copied=chunks.is_packed), ones]


def _features(
    chunks: _Chunks, x: Array, letter: str, is_copied: bool, is_copied_last: bool
) -> tuple[Array, list[Kernel]]:
    """phi(x), chunk by chunk; whether its gradient is copied before the derivative of phi, and after it."""
    part, features = (
        Array(f"{NAME} {letter} by heads", x.shape, x.dtype),
        Array(f"{NAME} phi({letter})", x.shape, x.dtype),
    )
    packed = chunks.array(f"phi({letter}) in chunks", chunks.rows, chunks.heads.width)
    by_heads = Array(f"{NAME} phi({letter}) by heads", x.shape, x.dtype)
    clone = Kernel("clone" if chunks.is_packed else "view", (by_heads,), (packed,), passes=(by_heads,),
                   is_view=not chunks.is_packed)  # fmt: skip
    return packed, [
        _view(x, part, is_copied_last),
        Kernel("elu", (part,), (features,), (part,), (part,)),
        _view(features, by_heads, is_copied),
        clone,
    ]


def _view(x: Array, y: Array, is_copied: bool) -> Kernel:
    """x in another shape, of which backward the gradient is a view too, or a copy."""
    gradients, passes = ((x,), ()) if is_copied else ((), (x,))
    return Kernel("view", (x,), (y,), gradients=gradients, passes=passes, is_view=True)


def _sums(tape: Tape, chunks: _Chunks, packed: tuple[Array, Array, Array]) -> tuple[Array, list[Kernel]]:
    """Weighted sums of values, and of ones: within chunks, and of the state before them."""
    q, k, v = packed
    rows, width, wide = chunks.rows, chunks.heads.width, chunks.wide
    turned = chunks.array("phi(k), transposed", width, rows)
    weights, masked = (chunks.array(name, rows, rows) for name in ("products", "masked products"))
    sums = chunks.array("sums within chunks", rows, wide)
    kernels = [
        Kernel("transpose", (k,), (turned,), passes=(k,), is_view=True, through_view=True),
        _product(tape, chunks, q, turned, weights, (width, rows)),
        Kernel("tril", (weights,), (masked,), gradients=(weights,), is_view=True),  # in place; backward a copy
        _product(tape, chunks, masked, v, sums, (rows, wide)),
    ]
    if chunks.count == 1:
        return sums, kernels
    before, steps = _states(tape, chunks, k, v)
    past, total = chunks.array("sums of the past", rows, wide), chunks.array("sums", rows, wide)
    kernels += [
        *steps,
        _product(tape, chunks, q, before, past, (width, wide)),
        Kernel("add", (sums, past), (total,), passes=(sums, past), is_view=True),  # in place
    ]
    return total, kernels


def _states(tape: Tape, chunks: _Chunks, k: Array, v: Array) -> tuple[Array, list[Kernel]]:
    """What the chunks before each add up to."""
    width, wide, kind = chunks.heads.width, chunks.wide, k.dtype
    turned = chunks.array("phi(k), transposed", width, chunks.rows)
    made = chunks.array("states of chunks", width, wide)
    fewer = Size("b*a*(s/C-1)", chunks.all.value // chunks.count * (chunks.count - 1))
    early = Array(f"{NAME} states but the last", (fewer, width, wide), kind)
    moved = chunks.array("states, moved on", width, wide)
    sums = chunks.array("states before", width, wide, dtype=DType.FP32)
    kernels = [
        Kernel("transpose", (k,), (turned,), passes=(k,), is_view=True, through_view=True),
        _product(tape, chunks, turned, v, made, (chunks.rows, wide)),
        Kernel("slice", (made,), (early,), gradients=(made,), is_view=True),
        Kernel("pad", (early,), (moved,), gradients=(early,)),
    ]
    summed, before = moved, sums
    if kind is not DType.FP32:
        summed = chunks.array("states, moved on, in fp32", width, wide, dtype=DType.FP32)
        before = chunks.array("states before, rounded", width, wide)
        kernels.append(Kernel("cast", (moved,), (summed,), gradients=(moved,)))
    kernels.append(Kernel("cumsum", (summed,), (sums,), gradients=(summed,), derivative=_derivative_of_sum(summed)))
    if before is not sums:
        kernels.append(Kernel("cast", (sums,), (before,), gradients=(sums,)))
    kernels.append(Kernel("release", (made, moved)))
    return before, kernels


def _derivative_of_sum(x: Array) -> Derivative:
    """Of a running sum: the same from the other end."""
    turned, summed, gradient = (
        Array(f"{name} of {x.name}", x.shape, x.dtype) for name in ("gradient, turned", "its sums", "gradient")
    )
    return Derivative((
        Kernel("flip", (), (turned,)), Kernel("cumsum", (turned,), (summed,)), Kernel("flip", (summed,), (gradient,)),
        Kernel("release", (turned, summed)),
    ), (gradient,))  # fmt: skip


def _shares(chunks: _Chunks, sums: Array) -> tuple[Array, list[Kernel]]:
    """Sums of values over sums of weights, of which tokens before heads is a view."""
    heads, rows = chunks.heads, chunks.rows
    values, weights = chunks.array("sums of values", rows, heads.width), chunks.array("sums of weights", rows, ONE)
    shares = chunks.array("shares", rows, heads.width)
    out = Array(f"{NAME} output", heads.q.shape, heads.q.dtype)
    is_copied = heads.count.value > 1 and (chunks.count > 1 or min(heads.batch.value, heads.seq.value) > 1)
    return out, [
        Kernel("split", (sums,), (values, weights), gradients=(sums,), is_view=True),
        Kernel("div", (values, weights), (shares,), (values, weights), (values, weights),
               derivative=_derivative_of_shares(chunks, values, weights)),
        _view(shares, out, is_copied),
    ]  # fmt: skip


def _derivative_of_shares(chunks: _Chunks, values: Array, weights: Array) -> Derivative:
    """Of x / w: -g ((x / w) / w), summed, for w; g / w for x (torch's div_tensor_other_grad, div_tensor_self_grad)."""
    once, twice, negative, product = (
        chunks.array(name, *values.shape[1:]) for name in ("x / w", "x / w^2", "-g", "-g x / w^2")
    )
    gradients = tuple(Array(f"gradient of {array.name}", array.shape, array.dtype) for array in (values, weights))
    return Derivative((
        Kernel("div", (), (once,)), Kernel("div", (once,), (twice,)), Kernel("neg", (), (negative,)),
        Kernel("mul", (twice, negative), (product,)), Kernel("release", (once, twice, negative)),
        Kernel("div", (), gradients[:1]), Kernel("sum", (product,), gradients[1:]),
    ), gradients)  # fmt: skip


def _product(tape: Tape, chunks: _Chunks, left: Array, right: Array, y: Array, inner: tuple[Size, Size]) -> Kernel:
    """A product a chunk; keeps both operands. inner: what is summed over, and columns."""
    forward = backward = 0
    if tape.packs_products:
        depth, columns = (size.value for size in inner)
        forward = tape.workspace.batched_product(depth, columns)
        backward = tape.workspace.batched_product_backward(chunks.all.value, left.shape[1].value, depth, columns)
    both = (left, right)
    return Kernel("bmm", both, (y,), both, both, forward_scratch=forward, backward_scratch=backward)


def _flops(chunks: _Chunks) -> Flops:
    """Within chunks 2 C (d + d + 1) a token and head, half of it masked away; with states 4 d (d + 1)."""
    heads, width = chunks.heads, chunks.heads.width.value
    tokens = heads.batch.value * heads.count.value * heads.seq.value
    within = 2 * tokens * chunks.tokens * (2 * width + 1)
    past = 4 * tokens * width * (width + 1) if chunks.count > 1 else 0
    return Flops(within + past, 2 * (within + past), causal_saving=0.5 * within / (within + past))
