"""Attention on a Tape: rotary positions, torch's fused kernel, and attention in the open."""

from __future__ import annotations

from dataclasses import dataclass

from suite.operators import Array, DType, Flops, Kernel, OperatorKind, Size
from suite.tape import Backend, Tape


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values as [b, s, heads, d] views of their projections."""

    q: Array
    k: Array
    v: Array
    count: Size  # a
    kv_count: Size  # k
    width: Size  # d
    own_value_width: Size | None = None  # of a value, padding left out, where it is not d
    has_biases: bool = False  # is something of its own added to every head's scores (ALiBi)?

    @property
    def value_width(self) -> Size:
        """Elements of a value that are its own."""
        return self.own_value_width or self.width

    @property
    def output_shape(self) -> tuple[Size, ...]:
        """Of the weighted sums of values: [b, s, a d_v]."""
        if self.own_value_width is None:
            return self.q.shape
        symbol = f"{self.count.symbol}*{self.value_width.symbol}"
        return (*self.q.shape[:2], Size(symbol, self.count.value * self.value_width.value))

    @property
    def batch(self) -> Size:
        """Sequences."""
        return self.q.shape[0]

    @property
    def seq(self) -> Size:
        """Tokens a sequence."""
        return self.q.shape[1]

    @property
    def keys(self) -> Size:
        """Tokens that each of them may read: another sequence's in cross-attention."""
        return self.k.shape[1]


def rotate(tape: Tape, name: str, x: Array, heads: Size, rotary: Size, width: Size) -> Array:
    """Rotary positions on one projection: two products and a sum for each half, then one concatenation.

    Keeps nothing that is not shared: the gradient of a rotation is a rotation.
    """
    half = Size(f"{heads.symbol}*r/2", heads.value * rotary.value // 2)
    part = (*x.shape[:2], half)
    kind = x.dtype
    first, second = Array(f"{name} first half", part, kind), Array(f"{name} second half", part, kind)
    scaled = [Array(f"{name} half * cos", part, kind) for _ in range(2)]
    turned = [Array(f"{name} half turned", part, kind) for _ in range(2)]
    y = Array(f"{name} output", x.shape, kind)
    angles = x.shape[1].value * rotary.value // 2 * kind.nbytes  # the negated or scaled table, in passing
    kernels = [
        Kernel("slice", (x,), (first,), gradients=(x,), is_view=True),
        Kernel("slice", (x,), (second,), gradients=(x,), is_view=True),
        Kernel("mul", (first,), (scaled[0],), gradients=(first,)),
        Kernel("addcmul", (scaled[0], second), (turned[0],), (), (second,), (scaled[0],), backward_scratch=angles),
        Kernel("mul", (second,), (scaled[1],), gradients=(second,)),
        Kernel("addcmul", (scaled[1], first), (turned[1],), (), (first,), (scaled[1],), backward_scratch=angles),
    ]
    parts: tuple[Array, ...] = (turned[0], turned[1])
    if rotary.value < width.value:
        left = Size(f"{heads.symbol}*(d-r)", heads.value * (width.value - rotary.value))
        rest = Array(f"{name} unrotated", (*x.shape[:2], left), kind)
        kernels.append(Kernel("slice", (x,), (rest,), gradients=(x,), is_view=True))
        parts = (*parts, rest)
    kernels.append(Kernel("cat", parts, (y,), passes=parts, through_view=True))
    elements = 2 * x.shape[0].value * x.shape[1].value * half.value
    tape.operator(name, OperatorKind.POINTWISE, kernels, flops=Flops(3 * elements, 3 * elements))
    return y


def flash(tape: Tape, name: str, heads: Heads, bias: Array | None = None, is_causal: bool | None = None) -> Array:
    """torch's scaled_dot_product_attention, causal, or in both directions with a bias on scores (or where `is_causal`
    says so). Keeps q, k, v, the output and a log-sum-exp a row, and the bias."""
    q, k, v = heads.q, heads.k, heads.v
    out = Array(f"{name} output", q.shape, q.dtype)
    lse = Array(f"{name} log-sum-exp", (heads.batch, heads.count, heads.seq), DType.FP32)
    forward_scratch, backward_scratch = _flash_scratch(tape, heads)
    added = () if bias is None else (bias,)
    kernel = Kernel(
        "flash_attention", (q, k, v, *added), (out, lse), (q, k, v, *added, out, lse), (q, k, v),
        forward_scratch=forward_scratch, backward_scratch=backward_scratch,
    )  # fmt: skip
    # q, k and v stay named until the frame returns
    kernels = [kernel, Kernel("release", (q, k, v))]
    is_halved = bias is None if is_causal is None else is_causal
    tape.operator(name, OperatorKind.ATTENTION, kernels, flops=_flops(heads, is_halved))
    return out


def _flash_scratch(tape: Tape, heads: Heads) -> tuple[int, int]:
    if tape.backend is not Backend.CPU:
        return 0, 0
    batch, count, kv_count, seq, width = (
        size.value for size in (heads.batch, heads.count, heads.kv_count, heads.seq, heads.width)
    )
    return tape.workspace.attention(batch, count, kv_count, seq, width, heads.q.dtype.nbytes, heads.keys.value)


def eager(
    tape: Tape, name: str, heads: Heads, bias: Array | None = None, is_scaled: bool = True, is_learned: bool = False,
    is_causal: bool | None = None, is_bare: bool = False,
) -> Array:  # fmt: skip
    """softmax(q k^T / sqrt(d) + mask) v with every step a tensor. Keeps the probabilities, and q, k and v, copied
    where batched products need another layout. Queries that share a key-value head are stacked: keys are never
    repeated. With a bias on scores it stands for the mask, and attention is in both directions unless `is_causal` says
    otherwise; a learned one receives a gradient, summed over the batch. `is_bare`: nothing at all is added."""
    q, k, v = heads.q, heads.k, heads.v
    kind = q.dtype
    square = (heads.batch, heads.count, heads.seq, heads.keys)
    scaled = Array(f"{name} q / sqrt(d)", q.shape, kind)
    packed = [Array(f"{name} {letter}, contiguous", x.shape, kind) for letter, x in zip("qkv", (q, k, v), strict=True)]
    scores, masked = Array(f"{name} scores", square, kind), Array(f"{name} masked scores", square, kind)
    probabilities = Array(f"{name} probabilities", square, kind)
    mask, making = _mask(heads, f"{name} mask", kind)
    out = Array(f"{name} output", heads.output_shape, kind)
    is_flat = heads.count.value == 1 or heads.seq.value == 1  # [b, s, a, d] is [b, a, s, d] already
    must_fold = (
        min(heads.batch.value, heads.kv_count.value, heads.keys.value) > 1
    )  # [b, k, ...] -> [b k, ...] is no view
    # in bf16 the CPU's products copy what is strided, in passing: keys of one sequence, values, the output's gradient
    is_strided = tape.backend is Backend.CPU and kind is DType.BF16 and not must_fold
    is_strided = is_strided and min(heads.kv_count.value, heads.seq.value) > 1
    strided_k, strided_v = (k.nbytes, v.nbytes) if is_strided else (0, 0)
    is_grouped = heads.count.value > heads.kv_count.value  # then the stacked gradient is a copy already
    strided_out = out.nbytes if is_strided and not is_grouped else 0
    kernels = [
        *([Kernel("mul", (q,), (scaled,), gradients=(q,))] if is_scaled else []),
        _copy_if(not is_flat, scaled if is_scaled else q, packed[0]),
        Kernel("rebind", (q,)),
        _copy_if(must_fold, k, packed[1]),
        _batched(tape, heads, packed[0], packed[1], scores, (heads.width, heads.keys), strided_k, strided_k),
        *([Kernel("mask", (), (mask,), forward_scratch=making)] if bias is None and not is_bare else []),
        _added(scores, None if is_bare else mask if bias is None else bias, masked, is_learned),
        Kernel("softmax", (masked,), (probabilities,), (probabilities,), (masked,)),
        _copy_if(must_fold, v, packed[2]),
        _batched(
            tape,
            heads,
            probabilities,
            packed[2],
            out,
            (heads.keys, heads.value_width),
            strided_v,
            strided_v + strided_out,
        ),
        # what the frame still names when it returns
        Kernel("release", (packed[0], probabilities, k, v)),
    ]
    is_halved = bias is None and not is_bare if is_causal is None else is_causal
    tape.operator(name, OperatorKind.ATTENTION, kernels, flops=_flops(heads, is_halved))
    return out


def _added(scores: Array, bias: Array | None, y: Array, is_learned: bool) -> Kernel:
    """Scores and a bias [1, a, s, t]; without one the scores by another name."""
    if bias is None:
        return Kernel("view", (scores,), (y,), passes=(scores,), is_view=True)
    if not is_learned:
        return Kernel("add", (scores, bias), (y,), passes=(scores,))
    if scores.shape[0].value == 1:  # nothing to sum over
        return Kernel("add", (scores, bias), (y,), passes=(scores, bias))
    return Kernel("add", (scores, bias), (y,), passes=(scores,), gradients=(bias,))


def _mask(heads: Heads, name: str, kind: DType) -> tuple[Array, int]:
    """What is added to scores, [s, s] or a bias for each head, and what making that needs beside it: distances in fp32,
    and their product with a head's slope."""
    if not heads.has_biases:
        return Array(name, (heads.seq, heads.seq), kind), 0
    return Array(name, (heads.count, heads.seq, heads.seq), kind), 2 * heads.seq.value**2 * DType.FP32.nbytes


def _batched(
    tape: Tape,
    heads: Heads,
    left: Array,
    right: Array,
    y: Array,
    inner: tuple[Size, Size],
    copied: int,
    copied_back: int,
) -> Kernel:
    """A product for each key-value head. Keeps both operands. inner: what is summed over, and columns; copied: bytes
    of strided operands that are copied in passing, forward and for the left operand's gradient, the last."""
    forward, backward = 0, 0
    if tape.packs_products:
        depth, columns = (size.value for size in inner)
        rows = heads.count.value // heads.kv_count.value * heads.seq.value
        forward = tape.workspace.batched_product(depth, columns)
        batch = heads.batch.value * heads.kv_count.value
        backward = tape.workspace.batched_product_backward(batch, rows, depth, columns)
    both = (left, right)
    return Kernel(
        "bmm", both, (y,), both, both, forward_scratch=forward + copied, backward_scratch=backward + copied_back
    )


def _copy_if(is_needed: bool, x: Array, y: Array) -> Kernel:
    """y = x in another layout: a copy where one is needed, else x itself under another name."""
    return Kernel("clone" if is_needed else "view", (x,), (y,), passes=(x,), is_view=not is_needed)


def merge_heads(tape: Tape, name: str, x: Array, contiguous: bool) -> Array:
    """[b, s, a, d] as [b, s, a d]: a view after the fused kernel, a copy after attention in the open."""
    if contiguous:
        return x
    y = Array(name, x.shape, x.dtype)
    tape.operator(name, OperatorKind.POINTWISE, [Kernel("clone", (x,), (y,), gradients=(x,))])
    return y


def release(tape: Tape, name: str, *arrays: Array) -> None:
    """The caller's frame drops its references here: arrays that nothing keeps for backward die."""
    tape.operator(name, OperatorKind.POINTWISE, [Kernel("release", arrays)])


def _flops(heads: Heads, is_causal: bool) -> Flops:
    """q k^T and p v over the full square: 2 b a s t (d + d_v) forward, twice that backward; half is masked away where
    attention is causal."""
    widths = heads.width.value + heads.value_width.value
    forward = 2 * heads.batch.value * heads.count.value * heads.seq.value * heads.keys.value * widths
    return Flops(forward, 2 * forward, causal_saving=0.5 if is_causal else 0.0)
