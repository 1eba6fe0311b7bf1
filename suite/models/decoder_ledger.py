"""The decoder's operator ledger: what suite/models/decoder_module.py runs, operator by operator, in its order."""

from __future__ import annotations

from dataclasses import dataclass, replace

from suite.cpu_workspace import CpuWorkspace
from suite.layout import Recompute, RecomputeKind
from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.models.experts_layers import experts_buffers, has_experts
from suite.models.experts_ledger import mixture
from suite.models.latent_ledger import latent_attention
from suite.models.prediction_ledger import behind, beside, look_up_again, several_heads, slice_of, widened
from suite.operators import Array, DType, Ledger, Placed, Segment, Size, Split
from suite.selective import kept_outputs
from suite.share import WHOLE, Share
from suite.spec import LOSS_CHUNKS, AttentionKernel, LossKernel, Workload
from suite.tape import Backend, Numerics, Tape
from suite.tape_attention import Heads, eager, flash, merge_heads, release, rotate
from suite.tape_context import merge_spread_heads, spread_attention
from suite.tape_dropout import dropout
from suite.tape_exchange import Load, load_of
from suite.tape_loss import chunked_head, cross_entropy
from suite.tape_tensor import enter, own_places, rows, vocabulary_rows


@dataclass(frozen=True)
class _Sizes:
    """The letters of the formulas and their values on this rank."""

    b: Size
    s: Size
    part: Size  # tokens a sequence between the regions that tensor parallelism divides
    whole: Size  # tokens a sequence on all ranks together
    h: Size
    q: Size
    k: Size
    f: Size
    v: Size
    heads: Size
    kv_heads: Size
    d: Size
    r: Size


def decoder_ledger(
    spec: DecoderSpec,
    workload: Workload,
    recompute: Recompute,
    numerics: Numerics,
    backend: Backend,
    workspace: CpuWorkspace,
    share: Share = WHOLE,
) -> Ledger:
    """The ledger of one micro-batch on a rank with that share: embedding, blocks, final norm, head with loss.
    The head is never in fp8, as torchtitan has it."""
    sizes = _sizes(spec, workload, share)

    def tape(numerics: Numerics = numerics) -> Tape:
        return Tape(numerics, backend, workspace, share)

    ids = Array("token ids", (sizes.b, sizes.s), DType.INT64)
    labels = Array("labels", (sizes.b, sizes.s), DType.INT64)
    embedding = _embedding(tape(), spec, sizes, ids)
    stream = Array("block input", (sizes.b, sizes.part, sizes.h), numerics.stream)
    form = [
        (recompute.covers_block(index), has_experts(spec, index), load_of(share, index, workload.imbalance))
        for index in range(spec.layers)
    ]
    kinds = {
        kind: _block(tape(), spec, sizes, stream, workload.attention, recompute, *kind) for kind in dict.fromkeys(form)
    }
    blocks = [Placed(f"blocks.{index}", kinds[kind]) for index, kind in enumerate(form)]
    streams, predictors = stream, []
    for depth in range(spec.mtp):
        load = load_of(share, spec.layers + depth, workload.imbalance)
        predictors.append(_predictor(tape(), spec, sizes, streams, labels, depth, workload.attention, load))
        streams = _like(predictors[-1].output, "streams of all depths")
    further = [Placed(f"mtp.{depth}", segment) for depth, segment in enumerate(predictors)]
    norm = _final_norm(tape(), spec, sizes, streams)
    hidden = _like(norm.output, "final norm output")
    head = _head(tape(replace(numerics, scaling=None)), spec, sizes, hidden, labels, workload.loss)
    buffers, shared = _rope_tables(spec, sizes, numerics, share)
    buffers += experts_buffers(spec)
    return Ledger(
        segments=(Placed("", embedding), *blocks, *further, Placed("", norm), Placed("", head)),
        loss=frozenset({head.name}),
        buffers=buffers,
        batch=(ids, labels),
        shared=shared,
    )


def _like(array: Array | None, name: str) -> Array:
    assert array is not None
    return Array(name, array.shape, array.dtype)


def _sizes(spec: DecoderSpec, workload: Workload, share: Share) -> _Sizes:
    seq = _tokens(workload, share)

    def own(symbol: str, whole: int) -> Size:
        return Size(symbol if share.tp == 1 else f"{symbol}/t", share.rows(whole))

    return _Sizes(
        Size("b", workload.micro_batch), seq, _over(seq, share.stream_parts), Size("s", workload.seq_len),
        Size("h", spec.hidden),
        own("a*d", spec.q_dim), own("k*d", spec.kv_dim), own("f", spec.ffn), own("V", spec.vocab),
        own("a", spec.heads), own("k", spec.kv_heads), Size("d", spec.head_dim), Size("r", spec.rotary_dim),
    )  # fmt: skip


def _over(size: Size, parts: int) -> Size:
    return size if parts == 1 else Size(f"{size.symbol}/t", size.value // parts)


def _norm(tape: Tape, spec: DecoderSpec, name: str, x: Array) -> Array:
    return tape.layer_norm(name, x, spec.bias) if spec.norm is Norm.LAYERNORM else tape.rms_norm(name, x)


def _embedding(tape: Tape, spec: DecoderSpec, sizes: _Sizes, ids: Array) -> Segment:
    x = vocabulary_rows(tape, "embedding", ids, sizes.v, sizes.h, sizes.part)
    batch: tuple[Array, ...] = (ids,)
    if spec.position is Position.LEARNED:
        whole = _places(tape, sizes)
        places = own_places(tape, "own places", whole, sizes.part)
        table = tape.embedding("positions", places, Size("P", spec.max_positions), sizes.h, Split.NONE)
        x = tape.add_broadcast("embedding and positions", x, table)
        batch = (ids, whole) if tape.share.cp > 1 else batch
    x = dropout(tape, "dropout", x, spec.dropout, sizes.whole)
    return Segment("embedding", tuple(tape.body), (), batch, x)


def _places(tape: Tape, sizes: _Sizes) -> Array:
    """Positions of the rank's tokens: made in every pass, or held for good where they are a part of the sequence's."""
    if tape.share.cp == 1:
        return tape.arange("places", sizes.s)
    return Array("places", (sizes.s,), DType.INT64)


def _block(
    tape: Tape,
    spec: DecoderSpec,
    sizes: _Sizes,
    x: Array,
    kernel: AttentionKernel,
    recompute: Recompute,
    rerun: bool,
    is_mixture: bool,
    load: Load,
) -> Segment:
    """x + attention(norm(x)), then x + mlp(norm(x)); as one region if the whole block is rerun in backward."""
    out = _block_output(tape, spec, sizes, x, kernel, recompute, is_mixture, load)
    if rerun:
        is_selective = recompute.kind is RecomputeKind.SELECTIVE_OP
        tape.region("block", 0, (x,), (out,), kept_outputs(tape.body) if is_selective else ())
    return Segment("block", tuple(tape.body), (x,), (), out)


def _block_output(
    tape: Tape, spec: DecoderSpec, sizes: _Sizes, x: Array, kernel: AttentionKernel, recompute: Recompute,
    is_mixture: bool, load: Load,
) -> Array:  # fmt: skip
    normed = _norm(tape, spec, "attention_norm", x)
    mixed = _attention(tape, spec, sizes, normed, kernel, recompute)
    mixed = dropout(tape, "attention_dropout", mixed, spec.dropout, sizes.whole)
    middle = tape.add("residual after attention", x, mixed)
    normed = _norm(tape, spec, "mlp_norm", middle)
    if is_mixture and spec.experts is not None:
        mixed = mixture(tape, normed, spec.experts, sizes.s, sizes.part, load)
    else:
        mixed = _mlp(tape, spec, sizes, normed)
    mixed = dropout(tape, "mlp_dropout", mixed, spec.dropout, sizes.whole)
    return tape.add("block output", middle, mixed)


def _predictor(
    tape: Tape, spec: DecoderSpec, sizes: _Sizes, x: Array, labels: Array, depth: int, kernel: AttentionKernel,
    load: Load,
) -> Segment:  # fmt: skip
    """A depth of multi-token prediction, whose tokens are depth + 1 fewer; never rerun. x: the depths before."""
    n = Size(f"(s-{depth + 1})", max(1, sizes.s.value - depth - 1))
    before = slice_of(tape, "stream before", x, (sizes.b, n, sizes.h))
    embedded = look_up_again(tape, labels, n, sizes.v, sizes.h)
    left, right = _norm(tape, spec, "stream_norm", before), _norm(tape, spec, "embedding_norm", embedded)
    both = beside(tape, "projection input", left, right)
    y = widened(tape, tape.linear("projection", both, sizes.h, False, Split.NONE), x.dtype)
    own = replace(sizes, s=n, part=n, whole=n)
    made = _block_output(tape, spec, own, y, kernel, Recompute(), has_experts(spec, spec.layers + depth), load)
    release(tape, "block returns", y)
    out = behind(tape, "streams", x, made)
    release(tape, "predictor returns", embedded)
    return Segment("predictor", tuple(tape.body), (x,), (labels,), out)


def _attention(
    tape: Tape, spec: DecoderSpec, sizes: _Sizes, x: Array, kernel: AttentionKernel, recompute: Recompute
) -> Array:
    if spec.latent is not None:
        outer, reruns_core = (sizes.s, sizes.part, sizes.h), recompute.kind is RecomputeKind.SELECTIVE
        return latent_attention(tape, x, spec.latent, sizes.heads, outer, kernel, reruns_core)
    whole = enter(tape, "attention", x, sizes.s)

    def project(name: str, width: Size) -> Array:
        return tape.linear(f"attention.{name}", whole, width, spec.projection_bias, Split.COLUMN)

    q, k, v = project("wq", sizes.q), project("wk", sizes.k), project("wv", sizes.k)
    start = len(tape.body)
    turned_q, turned_k = q, k
    if spec.position is Position.ROPE:
        turned_q = rotate(tape, "attention.rope q", q, sizes.heads, sizes.r, sizes.d)
        turned_k = rotate(tape, "attention.rope k", k, sizes.kv_heads, sizes.r, sizes.d)
    heads = Heads(turned_q, turned_k, v, sizes.heads, sizes.kv_heads, sizes.d)
    out = _core(tape, heads, kernel)
    release(tape, "attention.core returns", q, k, v)
    if recompute.kind is RecomputeKind.SELECTIVE:
        tape.region("attention.core", start, (q, k, v), (out,))
    merged = _merge(tape, sizes, out, kernel)
    y = rows(tape, "attention.wo", merged, sizes.h, spec.bias, sizes.part)
    release(tape, "attention returns", x, whole, out)
    return y


def _core(tape: Tape, heads: Heads, kernel: AttentionKernel) -> Array:
    if tape.share.cp > 1:
        return spread_attention(tape, "attention.core", heads, kernel)
    return (flash if kernel is AttentionKernel.FLASH else eager)(tape, "attention.core", heads)


def _merge(tape: Tape, sizes: _Sizes, x: Array, kernel: AttentionKernel) -> Array:
    name = "attention.core output, contiguous"
    if tape.share.cp > 1:
        return merge_spread_heads(tape, name, x, sizes.heads, kernel)
    contiguous = kernel is AttentionKernel.FLASH or min(sizes.heads.value, sizes.s.value) == 1
    return merge_heads(tape, name, x, contiguous)


def _mlp(tape: Tape, spec: DecoderSpec, sizes: _Sizes, x: Array) -> Array:
    whole = enter(tape, "mlp", x, sizes.s)
    if spec.activation is Activation.GELU:
        wide = tape.gelu("mlp.gelu", tape.linear("mlp.up", whole, sizes.f, spec.bias, Split.COLUMN))
    else:
        gate = tape.silu("mlp.silu", tape.linear("mlp.gate", whole, sizes.f, spec.bias, Split.COLUMN))
        wide = tape.mul("mlp.mul", gate, tape.linear("mlp.up", whole, sizes.f, spec.bias, Split.COLUMN))
    y = rows(tape, "mlp.down", wide, sizes.h, spec.bias, sizes.part)
    release(tape, "mlp returns", x, whole)
    return y


def _final_norm(tape: Tape, spec: DecoderSpec, sizes: _Sizes, x: Array) -> Segment:
    normed = _norm(tape, spec, "norm", x)
    y = enter(tape, "head", normed, sizes.s)
    release(tape, "trunk returns", x, normed)
    return Segment("final norm", tuple(tape.body), (x,), (), y)


def _head(tape: Tape, spec: DecoderSpec, sizes: _Sizes, hidden: Array, labels: Array, kernel: LossKernel) -> Segment:
    tied_to = "embedding.weight" if spec.tied else None
    if spec.mtp:
        several_heads(tape, hidden, labels, sizes.v, tied_to, spec.mtp)
    elif kernel is LossKernel.PLAIN:
        logits = tape.linear("head", hidden, sizes.v, False, Split.VOCAB, tied_to)
        cross_entropy(tape, "loss", logits, labels)
    else:
        chunked_head(tape, "head", hidden, labels, sizes.v, tied_to, min(LOSS_CHUNKS, sizes.s.value))
    release(tape, "model returns", hidden)
    return Segment("head", tuple(tape.body), (hidden,), (labels,), None)


def _tokens(workload: Workload, share: Share) -> Size:
    """The rank's tokens of a sequence."""
    return Size("s" if share.cp == 1 else "s/cp", workload.seq_len // share.cp)


def _rope_tables(
    spec: DecoderSpec, sizes: _Sizes, numerics: Numerics, share: Share
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The cosine and sine tables (buffers), and the step's copies of them: where its type is not fp32, or where the
    rank's rows are gathered."""
    if spec.position is not Position.ROPE:
        return (), ()
    half = Size("r/2", spec.rotary_dim // 2)
    buffers = tuple(Array(f"rope.{name}", (Size("P", spec.max_positions), half), DType.FP32) for name in ("cos", "sin"))
    if numerics.compute is DType.FP32 and share.cp == 1:
        return buffers, ()
    shape = (sizes.s, half)
    return buffers, tuple(Array(f"rope {name} of this step", shape, numerics.compute) for name in ("cos", "sin"))
