"""Multi-head latent attention in the operator ledger: what suite/models/latent_attention.py runs, kernel by kernel."""

from __future__ import annotations

from suite.models.latent_shape import Latent
from suite.operators import Array, Kernel, OperatorKind, Size, Split
from suite.spec import AttentionKernel
from suite.tape import ONE, Tape
from suite.tape_attention import Heads, eager, flash, merge_heads, release, rotate
from suite.tape_tensor import enter, rows

POINTWISE = OperatorKind.POINTWISE


def latent_attention(
    tape: Tape,
    x: Array,
    latent: Latent,
    heads: Size,
    outer: tuple[Size, Size, Size],
    kernel: AttentionKernel,
    reruns_core: bool,
) -> Array:
    """x [b, s, h] -> [b, s, h], of this rank's heads. outer: tokens a sequence within, those of the stream, and h.

    Down-projections, their norms and the rotated key that heads share are whole on every rank; queries and what is made
    of the latent are divided by heads.
    """
    seq, part, hidden = outer
    whole = enter(tape, "attention", x, seq)
    q = _queries(tape, whole, latent, _of(heads, Size("d", latent.key_dim)))
    down = tape.linear("attention.wkv_down", whole, Size("c", latent.kv_rank), False, Split.NONE)
    compressed = tape.rms_norm("attention.kv_norm", down)
    shared = tape.linear("attention.wk_rope", whole, Size("r", latent.rope_dim), False, Split.NONE)
    start = len(tape.body)
    out = _core(tape, (q, compressed, shared), latent, heads, kernel)
    if reruns_core:
        tape.region("attention.core", start, (q, compressed, shared), (out,))
    merged = _merged(tape, out, kernel, heads, is_padded=_pads(latent, kernel))
    y = rows(tape, "attention.wo", merged, hidden, False, part)
    release(tape, "attention returns", x, whole, out)
    return y


def _core(tape: Tape, given: tuple[Array, Array, Array], latent: Latent, heads: Size, kernel: AttentionKernel) -> Array:
    """Keys and values of all heads from the latent, and attention to them."""
    q, compressed, shared = given
    rotary, width, own = Size("r", latent.rope_dim), Size("d", latent.key_dim), Size("v", latent.v_dim)
    turned_q = rotate(tape, "attention.rope q", q, heads, rotary, width)
    turned = rotate(tape, "attention.rope k", shared, ONE, rotary, rotary)
    keys = _keys(tape, turned, compressed, heads, latent)
    values = tape.linear("attention.wv_up", compressed, _of(heads, own), False, Split.COLUMN)
    if _pads(latent, kernel):
        values = _padded(tape, values, _of(heads, width))
    sizes = Heads(turned_q, keys, values, heads, heads, width, own if own.value < width.value else None)
    out = (flash if kernel is AttentionKernel.FLASH else eager)(tape, "attention.core", sizes)
    if _pads(latent, kernel):
        out = _narrowed(tape, out, _of(heads, own))
    release(tape, "attention.core returns", q, compressed, shared, turned_q, turned, keys, values)
    return out


def _pads(latent: Latent, kernel: AttentionKernel) -> bool:
    """Are values padded to the width of keys?"""
    return kernel is AttentionKernel.FLASH and latent.v_dim < latent.key_dim


def _of(heads: Size, width: Size) -> Size:
    return Size(f"{heads.symbol}*{width.symbol}", heads.value * width.value)


def _queries(tape: Tape, x: Array, latent: Latent, width: Size) -> Array:
    if not latent.q_rank:
        return tape.linear("attention.wq", x, width, False, Split.COLUMN)
    down = tape.linear("attention.wq_down", x, Size("c_q", latent.q_rank), False, Split.NONE)
    return tape.linear("attention.wq_up", tape.rms_norm("attention.q_norm", down), width, False, Split.COLUMN)


def _keys(tape: Tape, turned: Array, compressed: Array, heads: Size, latent: Latent) -> Array:
    """The shared key for every head beside the head's own part: one concatenation. Keeps nothing; backward sums the
    shared key's gradient over heads, and copies the other's out of its strides."""
    nope = Size("n", latent.nope_dim)
    own = tape.linear("attention.wk_up", compressed, _of(heads, nope), False, Split.COLUMN)
    spread = Array("attention.keys shared, of every head", (*turned.shape[:2], _of(heads, turned.shape[2])), own.dtype)
    apart = Array("attention.keys of their own", own.shape, own.dtype)
    shape = (*own.shape[:2], _of(heads, Size("d", latent.key_dim)))
    keys = Array("attention.keys output", shape, own.dtype)
    tape.operator("attention.keys", POINTWISE, [
        Kernel("expand", (turned,), (spread,), gradients=(turned,), is_view=True),
        Kernel("view", (own,), (apart,), gradients=(own,), is_view=True),
        Kernel("cat", (spread, apart), (keys,), passes=(spread, apart), through_view=True),
    ])  # fmt: skip
    return keys


def _padded(tape: Tape, x: Array, width: Size) -> Array:
    """Values as wide as keys, for the fused kernel."""
    y = Array("attention.values, padded", (*x.shape[:2], width), x.dtype)
    tape.operator("attention.pad", POINTWISE, [Kernel("pad", (x,), (y,), gradients=(x,))])
    return y


def _narrowed(tape: Tape, x: Array, width: Size) -> Array:
    """What the fused kernel gives without the padding's part."""
    y = Array("attention.core output, unpadded", (*x.shape[:2], width), x.dtype)
    tape.operator("attention.unpad", POINTWISE, [Kernel("slice", (x,), (y,), gradients=(x,), is_view=True)])
    return y


def _merged(tape: Tape, x: Array, kernel: AttentionKernel, heads: Size, is_padded: bool) -> Array:
    """[b, s, a, v] as [b, s, a v]: a copy where the padding's part lies between heads, or heads before tokens."""
    name = "attention.core output, contiguous"
    if not is_padded:
        return merge_heads(tape, name, x, kernel is AttentionKernel.FLASH or min(heads.value, x.shape[1].value) == 1)
    if heads.value == 1:
        return x
    y = Array(name, x.shape, x.dtype)
    tape.operator(name, POINTWISE, [Kernel("clone", (x,), (y,), passes=(x,))])
    return y
