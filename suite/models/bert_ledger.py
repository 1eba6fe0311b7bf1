"""BERT's operator ledger: what suite/models/bert_module.py runs, operator by operator, in its order."""

from __future__ import annotations

from dataclasses import dataclass, replace

from suite.cpu_workspace import CpuWorkspace
from suite.layout import Recompute, RecomputeKind
from suite.models.bert import BertSpec
from suite.operators import Array, DType, Kernel, Ledger, OperatorKind, Placed, Segment, Size, Split
from suite.selective import kept_outputs
from suite.share import WHOLE, Share
from suite.spec import LOSS_CHUNKS, AttentionKernel, LossKernel, Workload
from suite.tape import Backend, Numerics, Tape
from suite.tape_attention import Heads, eager, flash, merge_heads, release
from suite.tape_dropout import dropout
from suite.tape_loss import chunked_head, cross_entropy, whole_cross_entropy
from suite.tape_tensor import enter, own_places, rows, vocabulary_rows

#: operators of the pretraining heads, which no backbone has
PRETRAINING_HEADS = frozenset({"next_sentence", "transform", "norm", "head"})


@dataclass(frozen=True)
class _Sizes:
    """The letters of the formulas and their values on this rank."""

    b: Size
    s: Size
    part: Size  # tokens a sequence between the regions that tensor parallelism divides
    h: Size
    q: Size
    f: Size
    v: Size
    heads: Size
    d: Size


def bert_ledger(
    spec: BertSpec,
    workload: Workload,
    recompute: Recompute,
    numerics: Numerics,
    backend: Backend,
    workspace: CpuWorkspace,
    share: Share = WHOLE,
) -> Ledger:
    """The ledger of one micro-batch on a rank with that share: embedding, blocks, pair and transform, head with loss.

    Every place is decoded, as in transformers' model, not the masked ones alone. Counted: all of the batch, padding
    included. Not counted: the copy of the pairs' labels, and in attention in the open without checkpointing the bias
    of the padding, b*s elements that then live in the forward pass alone.
    """
    sizes = _sizes(spec, workload, share)

    def tape(numerics: Numerics = numerics) -> Tape:
        return Tape(numerics, backend, workspace, share)

    ids, segments, labels = (
        Array(name, (sizes.b, sizes.s), DType.INT64) for name in ("token ids", "segments", "labels")
    )
    lengths, pairs = (Array(name, (sizes.b,), DType.INT64) for name in ("lengths", "labels of the pairs"))
    stream = Array("block input", (sizes.b, sizes.part, sizes.h), numerics.stream)
    bias = Array("bias of the padding", (sizes.b, sizes.s), numerics.compute)
    kinds = {
        rerun: _block(tape(), spec, sizes, stream, bias, workload.attention, recompute, rerun)
        for rerun in {recompute.covers_block(index) for index in range(spec.layers)}
    }
    blocks = [Placed(f"blocks.{index}", kinds[recompute.covers_block(index)]) for index in range(spec.layers)]
    top = _top(tape(), sizes, stream, pairs)
    assert top.output is not None
    hidden = Array("transform output", top.output.shape, top.output.dtype)
    head = _head(tape(replace(numerics, scaling=None)), sizes, hidden, labels, workload.loss)
    keeps_bias = workload.attention is AttentionKernel.FLASH or recompute.kind is not RecomputeKind.NONE
    return Ledger(
        segments=(
            Placed("", _embedding(tape(), spec, sizes, ids, segments)), *blocks, Placed("", top), Placed("", head),
        ),
        loss=frozenset({head.name}),
        batch=(ids, labels, segments, lengths, pairs),
        shared=(bias,) if keeps_bias else (),
    )  # fmt: skip


def backbone_parameters(ledger: Ledger) -> int:
    """Parameters of embeddings, blocks and pooler: what a checkpoint without pretraining heads holds."""
    heads = sum(
        weight.elements
        for placed in ledger.segments
        if not placed.prefix
        for operator in placed.segment.operators()
        if operator.name in PRETRAINING_HEADS
        for weight in operator.weights
        if not weight.tied_to
    )
    return ledger.parameters - heads


def _sizes(spec: BertSpec, workload: Workload, share: Share) -> _Sizes:
    seq = Size("s", workload.seq_len)
    parts = share.stream_parts

    def own(symbol: str, whole: int) -> Size:
        return Size(symbol if share.tp == 1 else f"{symbol}/t", share.rows(whole))

    return _Sizes(
        Size("b", workload.micro_batch), seq, seq if parts == 1 else Size("s/t", seq.value // parts),
        Size("h", spec.hidden), own("h", spec.hidden), own("f", spec.ffn), own("V", spec.vocab),
        own("a", spec.heads), Size("d", spec.head_dim),
    )  # fmt: skip


def _embedding(tape: Tape, spec: BertSpec, sizes: _Sizes, ids: Array, segments: Array) -> Segment:
    x = vocabulary_rows(tape, "embedding.word", ids, sizes.v, sizes.h, sizes.part)
    places = own_places(tape, "own places", tape.arange("places", sizes.s), sizes.part)
    table = tape.embedding("embedding.positions", places, Size("P", spec.max_positions), sizes.h, Split.NONE)
    x = tape.add_broadcast("embedding and positions", x, table)
    mine = own_places(tape, "own segments", segments, sizes.part)
    kinds = tape.embedding("embedding.segments", mine, Size("S", spec.segments), sizes.h, Split.NONE)
    x = tape.add("embedding, positions and segments", x, kinds)
    x = tape.layer_norm("embedding.norm", x, True)
    x = dropout(tape, "dropout", x, spec.dropout, sizes.s)
    return Segment("embedding", tuple(tape.body), (), (ids, segments), x)


def _block(
    tape: Tape,
    spec: BertSpec,
    sizes: _Sizes,
    x: Array,
    bias: Array,
    kernel: AttentionKernel,
    recompute: Recompute,
    rerun: bool,
) -> Segment:
    """norm(x + attention(x)), then norm(x + mlp(x)); as one region if the whole block is rerun in backward."""
    mixed = _attention(tape, sizes, x, bias, kernel, recompute)
    mixed = dropout(tape, "attention_dropout", mixed, spec.dropout, sizes.s)
    middle = tape.layer_norm("attention_norm", tape.add("residual after attention", x, mixed), True)
    mixed = dropout(tape, "mlp_dropout", _mlp(tape, sizes, middle), spec.dropout, sizes.s)
    out = tape.layer_norm("mlp_norm", tape.add("residual after mlp", middle, mixed), True)
    release(tape, "block returns", middle)
    if rerun:
        is_selective = recompute.kind is RecomputeKind.SELECTIVE_OP
        tape.region("block", 0, (x,), (out,), kept_outputs(tape.body) if is_selective else ())
    return Segment("block", tuple(tape.body), (x,), (), out)


def _attention(
    tape: Tape, sizes: _Sizes, x: Array, bias: Array, kernel: AttentionKernel, recompute: Recompute
) -> Array:
    whole = enter(tape, "attention", x, sizes.s)
    q, k, v = (tape.linear(f"attention.{name}", whole, sizes.q, True, Split.COLUMN) for name in ("wq", "wk", "wv"))
    start = len(tape.body)
    heads = Heads(q, k, v, sizes.heads, sizes.heads, sizes.d)
    out = (flash if kernel is AttentionKernel.FLASH else eager)(tape, "attention.core", heads, bias)
    release(tape, "attention.core returns", q, k, v)
    if recompute.kind is RecomputeKind.SELECTIVE:
        tape.region("attention.core", start, (q, k, v), (out,))
    is_contiguous = kernel is AttentionKernel.FLASH or min(sizes.heads.value, sizes.s.value) == 1
    merged = merge_heads(tape, "attention.core output, contiguous", out, is_contiguous)
    y = rows(tape, "attention.wo", merged, sizes.h, True, sizes.part)
    release(tape, "attention returns", x, whole, out)
    return y


def _mlp(tape: Tape, sizes: _Sizes, x: Array) -> Array:
    whole = enter(tape, "mlp", x, sizes.s)
    wide = tape.gelu("mlp.gelu", tape.linear("mlp.up", whole, sizes.f, True, Split.COLUMN))
    y = rows(tape, "mlp.down", wide, sizes.h, True, sizes.part)
    release(tape, "mlp returns", x, whole)
    return y


def _top(tape: Tape, sizes: _Sizes, x: Array, pairs: Array) -> Segment:
    """The pair's loss from the first token, then the transform that the head reads."""
    first = Array("first tokens", (sizes.b, sizes.h), x.dtype)
    tape.operator(
        "first tokens", OperatorKind.POINTWISE, [Kernel("select", (x,), (first,), gradients=(x,), is_view=True)]
    )
    pooled = _tanh(tape, "pooler.tanh", tape.linear("pooler", first, sizes.h, True, Split.NONE))
    logits = tape.linear("next_sentence", pooled, Size("2", 2), True, Split.NONE)
    whole_cross_entropy(tape, "loss of the pairs", logits, pairs)
    y = _wide(tape, tape.gelu("transform.gelu", tape.linear("transform", x, sizes.h, True, Split.NONE)))
    normed = tape.layer_norm("norm", y, True)
    whole = enter(tape, "head", normed, sizes.s)
    release(tape, "top returns", x, normed)
    return Segment("pair and transform", tuple(tape.body), (x,), (pairs,), whole)


def _tanh(tape: Tape, name: str, x: Array) -> Array:
    """tanh(x). Keeps the result."""
    y = Array(f"{name} output", x.shape, x.dtype)
    tape.operator(name, OperatorKind.POINTWISE, [Kernel("tanh", (x,), (y,), (y,), (x,))])
    return y


def _wide(tape: Tape, x: Array) -> Array:
    """What the transform's norm reads: CUDA's autocast runs layer norms in fp32, the CPU's as they come."""
    if tape.backend is Backend.CPU or not tape.numerics.autocast:
        return x
    y = Array(f"{x.name}, in fp32", x.shape, DType.FP32)
    tape.operator(y.name, OperatorKind.POINTWISE, [Kernel("cast", (x,), (y,), gradients=(x,))])
    return y


def _head(tape: Tape, sizes: _Sizes, hidden: Array, labels: Array, kernel: LossKernel) -> Segment:
    tied_to = "embedding.word.weight"
    if kernel is LossKernel.PLAIN:
        logits = tape.linear("head", hidden, sizes.v, True, Split.VOCAB, tied_to)
        cross_entropy(tape, "loss", logits, labels, is_mean=False)
    else:
        chunked_head(tape, "head", hidden, labels, sizes.v, tied_to, min(LOSS_CHUNKS, sizes.s.value), bias=True)
    release(tape, "model returns", hidden)
    return Segment("head", tuple(tape.body), (hidden,), (labels,), None)
