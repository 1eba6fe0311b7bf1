"""The Transformer's operator ledger: what encoder_decoder_module.py's Transformer runs, operator by operator."""

from __future__ import annotations

from suite.cpu_workspace import CpuWorkspace
from suite.layout import Recompute
from suite.models.encoder_decoder_ledger import (
    POINTWISE,
    Run,
    Sight,
    Sizes,
    attention,
    block_segment,
    head_segment,
    relu_mlp,
    shared_embedding,
    sizes_of,
    stacked,
    token_ids,
)
from suite.models.transformer import TransformerSpec
from suite.operators import Array, DType, Kernel, Ledger, Segment, Size
from suite.share import WHOLE, Share
from suite.spec import AttentionKernel, Workload
from suite.tape import ONE, Backend, Numerics, Tape
from suite.tape_attention import release

#: the encoder's last stream is what the decoder reads: walks call it so
STREAM = "stream between blocks"


def transformer_ledger(
    spec: TransformerSpec,
    workload: Workload,
    recompute: Recompute,
    numerics: Numerics,
    backend: Backend,
    workspace: CpuWorkspace,
    share: Share = WHOLE,
) -> Ledger:
    """The ledger of one micro-batch: the source's embedding and the mask of its padding, the encoder, the target's
    embedding, the decoder, head with loss."""
    run = Run(workload, recompute, numerics, backend, workspace, share)
    sizes = sizes_of(spec, workload)
    ids, reads = token_ids("token ids", sizes.b, sizes.s), token_ids("decoder's token ids", sizes.b, sizes.t)
    labels, lengths = token_ids("labels", sizes.b, sizes.t), token_ids("source lengths", sizes.b)
    source = Array("source stream", (sizes.b, sizes.s, sizes.h), numerics.stream)
    target = Array("target stream", (sizes.b, sizes.t, sizes.h), numerics.stream)

    tape = run.tape()
    x = _embedded(tape, ids, sizes, is_owner=True)
    padding = _padding(tape, lengths, sizes)
    first = Segment("embedding", tuple(tape.body), (), (ids, lengths), x, makes=(padding,))

    tape = run.tape()
    memory = Array(STREAM, source.shape, source.dtype)
    tape.operator("encoder returns", POINTWISE, [Kernel("view", (source,), (memory,), passes=(source,), is_view=True)])
    x = _embedded(tape, reads, sizes, is_owner=False)
    before = _causal(tape, sizes) if workload.attention is AttentionKernel.EAGER else None
    made = (memory,) if before is None else (memory, before)
    middle = Segment("target", tuple(tape.body), (source,), (reads,), x, makes=made)

    tape = run.tape()
    hidden = Array("decoder output", target.shape, target.dtype)
    tape.operator("decoder returns", POINTWISE, [
        Kernel("release", (*made, padding)), Kernel("view", (target,), (hidden,), passes=(target,), is_view=True)
    ])  # fmt: skip
    last = Segment("decoder returns", tuple(tape.body), (target,), (), hidden, borrows=(*made, padding))
    read = Array("final stream", target.shape, target.dtype)
    head = head_segment(run, spec, read, labels, spec.label_smoothing > 0)

    def block(is_decoder: bool, rerun: bool) -> Segment:
        if is_decoder:
            return _decoder_block(run, spec, sizes, target, before, memory, padding, rerun)
        return _encoder_block(run, spec, sizes, source, padding, rerun)

    positions = Array("positions.table", (Size("P", spec.max_positions), sizes.h), DType.FP32)
    return stacked(spec, run, (first, middle, last, head), block, (ids, labels, reads, lengths), (positions,))


def _attend(
    tape: Tape, name: str, run: Run, spec: TransformerSpec, sizes: Sizes, x: Array, source: Array | None, sight: Sight
) -> Array:
    """norm(x + attention(x))."""
    kernel = run.workload.attention
    mixed = attention(tape, name, x, source, sizes, sight, kernel, run.recompute, spec.attention_bias, True)
    y = tape.layer_norm(f"{name}_norm", tape.add(f"residual after {name}", x, mixed), True)
    release(tape, f"{name} normalised", x)
    return y


def _encoder_block(run: Run, spec: TransformerSpec, sizes: Sizes, x: Array, padding: Array, rerun: bool) -> Segment:
    tape = run.tape()
    middle = _attend(tape, "attention", run, spec, sizes, x, None, Sight(padding))
    out = _feed(tape, sizes, middle)
    return block_segment(tape, "block", x, out, (padding,), run.recompute, rerun)


def _decoder_block(
    run: Run, spec: TransformerSpec, sizes: Sizes, x: Array, before: Array | None, memory: Array, padding: Array,
    rerun: bool,
) -> Segment:  # fmt: skip
    tape = run.tape()
    middle = _attend(tape, "attention", run, spec, sizes, x, None, Sight(before, is_causal=True))
    middle = _attend(tape, "cross", run, spec, sizes, middle, memory, Sight(padding))
    out = _feed(tape, sizes, middle)
    lent = (memory, padding) if before is None else (before, memory, padding)
    return block_segment(tape, "decoder block", x, out, lent, run.recompute, rerun)


def _feed(tape: Tape, sizes: Sizes, x: Array) -> Array:
    """norm(x + mlp(x))."""
    mixed = relu_mlp(tape, x, sizes, True)
    y = tape.layer_norm("mlp_norm", tape.add("residual after mlp", x, mixed), True)
    release(tape, "block returns", x)
    return y


def _embedded(tape: Tape, ids: Array, sizes: Sizes, is_owner: bool) -> Array:
    """Rows times sqrt(h), and the places' sinusoids."""
    x = tape.scale("embedding scale", shared_embedding(tape, ids, sizes, is_owner))
    y = Array("embedding and positions", x.shape, x.dtype)
    cast = 0 if x.dtype is DType.FP32 else x.nbytes // x.shape[0].value  # the table's rows in the stream's type
    tape.operator("positions", POINTWISE, [Kernel("add", (x,), (y,), passes=(x,), forward_scratch=cast)])
    return y


def _padding(tape: Tape, lengths: Array, sizes: Sizes) -> Array:
    """What hides a source's padding, [b, 1, 1, s]."""
    mask = Array("padding mask", (sizes.b, ONE, ONE, sizes.s), tape.numerics.compute)
    scratch = sizes.b.value * sizes.s.value + sizes.s.value * DType.INT64.nbytes  # which are hidden, and the places
    tape.operator("padding mask", POINTWISE, [Kernel("compare", (lengths,), (mask,), forward_scratch=scratch)])
    return mask


def _causal(tape: Tape, sizes: Sizes) -> Array:
    """What hides the keys after a query, [t, t]."""
    mask = Array("causal mask", (sizes.t, sizes.t), tape.numerics.compute)
    tape.operator("causal mask", POINTWISE, [Kernel("mask", (), (mask,))])
    return mask
