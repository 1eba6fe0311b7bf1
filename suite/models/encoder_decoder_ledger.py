"""What the ledgers of encoder-decoders share: sizes, attention, feed-forward networks, and how two stacks make a model.

What suite/models/encoder_decoder_module.py and encoder_decoder_blocks.py run, operator by operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from suite.cpu_workspace import CpuWorkspace
from suite.layout import Recompute, RecomputeKind
from suite.lending import with_roles
from suite.models.encoder_decoder import EncoderDecoderSpec
from suite.operators import Array, DType, Ledger, OperatorKind, Placed, Segment, Size, Split
from suite.selective import kept_outputs
from suite.share import Share
from suite.spec import LOSS_CHUNKS, AttentionKernel, LossKernel, Workload
from suite.tape import Backend, Numerics, Tape
from suite.tape_attention import Heads, eager, flash, merge_heads, release
from suite.tape_loss import chunked_head, cross_entropy


@dataclass(frozen=True)
class Sizes:
    """The letters of the formulas and their values on this rank."""

    b: Size
    s: Size  # tokens of the source
    t: Size  # tokens of the target
    h: Size
    q: Size  # all heads together
    f: Size
    v: Size
    heads: Size
    d: Size


def sizes_of(spec: EncoderDecoderSpec, workload: Workload) -> Sizes:
    """The sizes of a model and its workload."""
    return Sizes(
        Size("b", workload.micro_batch), Size("s", workload.seq_len), Size("t", spec.target_len(workload.seq_len)),
        Size("h", spec.hidden), Size("a*d", spec.q_dim), Size("f", spec.ffn), Size("V", spec.vocab),
        Size("a", spec.heads), Size("d", spec.head_dim),
    )  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Everything beside the specification that a ledger depends on."""

    workload: Workload
    recompute: Recompute
    numerics: Numerics
    backend: Backend
    workspace: CpuWorkspace
    share: Share

    def tape(self) -> Tape:
        """A fresh tape."""
        return Tape(self.numerics, self.backend, self.workspace, self.share)


@dataclass(frozen=True)
class Sight:
    """What one attention may read: an added mask, learned or not, none at all, or what comes before."""

    mask: Array | None = None
    is_learned: bool = False
    is_causal: bool = False


def attention(
    tape: Tape, name: str, x: Array, source: Array | None, sizes: Sizes, sight: Sight, kernel: AttentionKernel,
    recompute: Recompute, bias: bool, is_scaled: bool,
) -> Array:  # fmt: skip
    """Attention of x [b, s, h] to itself or to a source [b, t, h] (MaskedAttention). Lent arrays are held elsewhere."""
    read = x if source is None else source
    q = tape.linear(f"{name}.wq", x, sizes.q, bias, Split.COLUMN)
    k, v = (tape.linear(f"{name}.{letter}", read, sizes.q, bias, Split.COLUMN) for letter in ("wk", "wv"))
    start = len(tape.body)
    heads = Heads(q, k, v, sizes.heads, sizes.heads, sizes.d)
    if kernel is AttentionKernel.FLASH:
        out = flash(tape, f"{name}.core", heads, sight.mask, sight.is_causal)
    else:
        out = eager(
            tape, f"{name}.core", heads, sight.mask, is_scaled, sight.is_learned, sight.is_causal, sight.mask is None
        )
    release(tape, f"{name}.core returns", q, k, v)
    if recompute.kind is RecomputeKind.SELECTIVE:
        mask = () if sight.mask is None else (sight.mask,)
        tape.region(f"{name}.core", start, (q, k, v, *mask), (out,))
    is_contiguous = kernel is AttentionKernel.FLASH or min(sizes.heads.value, x.shape[1].value) == 1
    merged = merge_heads(tape, f"{name}.core output, contiguous", out, is_contiguous)
    y = tape.linear(f"{name}.wo", merged, sizes.h, bias, Split.ROW)
    release(tape, f"{name} returns", x, out)
    return y


def relu_mlp(tape: Tape, x: Array, sizes: Sizes, bias: bool) -> Array:
    """down(relu(up(x)))."""
    wide = tape.relu("mlp.relu", tape.linear("mlp.up", x, sizes.f, bias, Split.COLUMN))
    y = tape.linear("mlp.down", wide, sizes.h, bias, Split.ROW)
    release(tape, "mlp returns", x)
    return y


def gated_gelu(tape: Tape, x: Array, sizes: Sizes) -> Array:
    """down(gelu(gate(x)) * up(x))."""
    gate = tape.gelu("mlp.gelu", tape.linear("mlp.gate", x, sizes.f, False, Split.COLUMN))
    wide = tape.mul("mlp.mul", gate, tape.linear("mlp.up", x, sizes.f, False, Split.COLUMN))
    y = tape.linear("mlp.down", wide, sizes.h, False, Split.ROW)
    release(tape, "mlp returns", x)
    return y


def block_segment(
    tape: Tape, name: str, x: Array, out: Array, lent: tuple[Array, ...], recompute: Recompute, rerun: bool
) -> Segment:
    """What the tape holds as a block: one region if all of it is rerun in backward."""
    if rerun:
        is_selective = recompute.kind is RecomputeKind.SELECTIVE_OP
        tape.region("block", 0, (x, *lent), (out,), kept_outputs(tape.body) if is_selective else ())
    return Segment(name, tuple(tape.body), (x,), (), out, borrows=lent)


def head_segment(run: Run, spec: EncoderDecoderSpec, hidden: Array, labels: Array, is_smoothed: bool) -> Segment:
    """The head and the loss."""
    tape, tied_to = run.tape(), "embedding.weight" if spec.tied else None
    vocab = Size("V", spec.vocab)
    if run.workload.loss is LossKernel.PLAIN:
        logits = tape.linear("head", hidden, vocab, False, Split.VOCAB, tied_to)
        cross_entropy(tape, "loss", logits, labels, is_mean=False, is_smoothed=is_smoothed)
    else:
        chunks = min(LOSS_CHUNKS, hidden.shape[1].value)
        chunked_head(tape, "head", hidden, labels, vocab, tied_to, chunks, is_smoothed=is_smoothed)
    release(tape, "model returns", hidden)
    return Segment("head", tuple(tape.body), (hidden,), (labels,), None)


def stacked(
    spec: EncoderDecoderSpec, run: Run, parts: tuple[Segment, Segment, Segment, Segment],
    block: Callable[[bool, bool], Segment], batch: tuple[Array, ...], buffers: tuple[Array, ...] = (),
) -> Ledger:  # fmt: skip
    """The ledger of `parts`, what comes before the encoder's blocks, between the stacks, after the decoder's, and the
    head, and of the blocks: `block`, of (is it the decoder's?, is it rerun?)."""
    first, middle, last, head = parts
    kinds: dict[tuple[bool, bool], Segment] = {}
    blocks = []
    for index in range(spec.layers):
        kind = index >= spec.encoder_layers, run.recompute.covers_block(index)
        if kind not in kinds:
            kinds[kind] = block(*kind)
        blocks.append(Placed(f"blocks.{index}", kinds[kind]))
    encoder, decoder = blocks[: spec.encoder_layers], blocks[spec.encoder_layers :]
    ends = Placed("", first), Placed("", middle), Placed("", last), Placed("", head)
    return Ledger(
        segments=with_roles((ends[0], *encoder, ends[1], *decoder, ends[2], ends[3])),
        loss=frozenset({head.name}),
        buffers=buffers,
        batch=batch,
    )


def shared_embedding(tape: Tape, ids: Array, sizes: Sizes, is_owner: bool) -> Array:
    """Rows of the one embedding of source and target; its owner is the source's, which comes first."""
    if is_owner:
        return tape.embedding("embedding", ids, sizes.v, sizes.h)
    return tape.embedding("embedding", ids, sizes.v, sizes.h, tied_to="embedding.weight")


def token_ids(name: str, *shape: Size) -> Array:
    """Integers of the batch."""
    return Array(name, shape, DType.INT64)


POINTWISE = OperatorKind.POINTWISE
