"""T5's operator ledger: what suite/models/encoder_decoder_module.py's T5 runs, operator by operator, in its order."""

from __future__ import annotations

from suite.cpu_workspace import CpuWorkspace
from suite.layout import Recompute
from suite.models.encoder_decoder import Feed
from suite.models.encoder_decoder_ledger import (
    POINTWISE,
    Run,
    Sight,
    Sizes,
    attention,
    block_segment,
    gated_gelu,
    head_segment,
    relu_mlp,
    shared_embedding,
    sizes_of,
    stacked,
    token_ids,
)
from suite.models.t5 import T5Spec
from suite.operators import Array, DType, Kernel, Ledger, Segment, Size, Split
from suite.share import WHOLE, Share
from suite.spec import AttentionKernel, Workload
from suite.tape import Backend, Numerics, Tape
from suite.tape_attention import release


def t5_ledger(
    spec: T5Spec,
    workload: Workload,
    recompute: Recompute,
    numerics: Numerics,
    backend: Backend,
    workspace: CpuWorkspace,
    share: Share = WHOLE,
) -> Ledger:
    """The ledger of one micro-batch: embedding and bias, the encoder, its norm with the target's embedding and bias,
    the decoder, the final norm, head with loss."""
    run = Run(workload, recompute, numerics, backend, workspace, share)
    sizes = sizes_of(spec, workload)
    ids, reads = token_ids("token ids", sizes.b, sizes.s), token_ids("decoder's token ids", sizes.b, sizes.t)
    labels = token_ids("labels", sizes.b, sizes.t)
    source = Array("source stream", (sizes.b, sizes.s, sizes.h), numerics.stream)
    target = Array("target stream", (sizes.b, sizes.t, sizes.h), numerics.stream)

    tape = run.tape()
    x = shared_embedding(tape, ids, sizes, is_owner=True)
    encoder_bias = _bias(tape, spec, "encoder_bias", sizes.heads, sizes.s, is_causal=False)
    first = Segment("embedding", tuple(tape.body), (), (ids,), x, makes=(encoder_bias,))

    tape = run.tape()
    memory = tape.rms_norm("encoder_norm", source)
    release(tape, "encoder returns", source, encoder_bias)
    x = shared_embedding(tape, reads, sizes, is_owner=False)
    decoder_bias = _bias(tape, spec, "decoder_bias", sizes.heads, sizes.t, is_causal=True)
    lent = (memory, decoder_bias)
    middle = Segment("target", tuple(tape.body), (source,), (reads,), x, makes=lent, borrows=(encoder_bias,))

    last = _final_norm(run.tape(), spec, target, lent)
    assert last.output is not None
    hidden = Array("final norm output", last.output.shape, last.output.dtype)
    head = head_segment(run, spec, hidden, labels, is_smoothed=False)

    def block(is_decoder: bool, rerun: bool) -> Segment:
        if is_decoder:
            return _block(run, spec, sizes, target, decoder_bias, memory, rerun)
        return _block(run, spec, sizes, source, encoder_bias, None, rerun)

    return stacked(spec, run, (first, middle, last, head), block, (ids, labels, reads))


def _block(run: Run, spec: T5Spec, sizes: Sizes, x: Array, bias: Array, memory: Array | None, rerun: bool) -> Segment:
    """x + attention(norm(x)), of the decoder x + cross(norm(x)), x + mlp(norm(x))."""
    tape = run.tape()
    normed = tape.rms_norm("attention_norm", x)
    sight = Sight(bias, is_learned=True, is_causal=memory is not None)
    mixed = attention(tape, "attention", normed, None, sizes, sight, AttentionKernel.EAGER, run.recompute, False, False)
    middle = tape.add("residual after attention", x, mixed)
    if memory is not None:
        normed = tape.rms_norm("cross_norm", middle)
        kernel = run.workload.attention
        mixed = attention(tape, "cross", normed, memory, sizes, Sight(), kernel, run.recompute, False, False)
        middle = tape.add("residual after cross-attention", middle, mixed)
    normed = tape.rms_norm("mlp_norm", middle)
    is_gated = spec.feed is Feed.GATED_GELU
    mixed = gated_gelu(tape, normed, sizes) if is_gated else relu_mlp(tape, normed, sizes, False)
    out = tape.add("block output", middle, mixed)
    lent = (bias,) if memory is None else (bias, memory)
    return block_segment(tape, "block" if memory is None else "decoder block", x, out, lent, run.recompute, rerun)


def _bias(tape: Tape, spec: T5Spec, name: str, heads: Size, seq: Size, is_causal: bool) -> Array:
    """The values of all distances, laid out as [a, s, s]; a row of the layout is a part of those values. Keeps the
    buckets of the distances, and for a decoder which of them lie ahead. In fp32, then in the type of the scores."""
    ahead = Size(f"2{seq.symbol}-1", 2 * seq.value - 1)
    buckets = Array(f"{name} buckets", (ahead,), DType.INT64)
    tape.operator(f"{name} buckets", POINTWISE, [Kernel("buckets", (), (buckets,), forward_scratch=3 * buckets.nbytes)])
    weight = tape.weight(f"{name}.table.weight", (Size("r", spec.buckets), heads), Split.NONE)
    values = Array(f"{name} of distances", (ahead, heads), tape.numerics.stream)
    kernels = [Kernel("embedding", (buckets, weight), (values,), (buckets,), (weight,))]
    if values.dtype is not DType.FP32:
        wide = Array(f"{name} of distances, fp32", values.shape, DType.FP32)
        kernels.append(Kernel("cast", (values,), (wide,), gradients=(values,)))
        values = wide
    if is_causal:
        hidden = Array(f"{name} hidden distances", (ahead,), DType.BOOL)
        masked = Array(f"{name} of distances, masked", values.shape, DType.FP32)
        kernels.append(Kernel("compare", (), (hidden,)))
        kernels.append(Kernel("masked_fill", (values, hidden), (masked,), (hidden,), (values,)))
        values = masked
    shape = (heads, seq, seq)
    windows, bias = Array(f"{name} windows", shape, DType.FP32), Array(name, shape, DType.FP32)
    kernels.append(Kernel("unfold", (values,), (windows,), gradients=(values,), is_view=True))
    kernels.append(Kernel("flip", (windows,), (bias,), gradients=(windows,)))
    if tape.numerics.compute is not DType.FP32:
        narrow = Array(name, shape, tape.numerics.compute)
        kernels.append(Kernel("cast", (bias,), (narrow,), gradients=(bias,)))
        bias = narrow
    tape.operator(name, POINTWISE, kernels, (weight,))
    return bias


def _final_norm(tape: Tape, spec: T5Spec, x: Array, lent: tuple[Array, ...]) -> Segment:
    release(tape, "decoder returns", *lent)
    normed = tape.rms_norm("norm", x)
    y = tape.scale("head scale", normed) if spec.tied else normed
    release(tape, "trunk returns", x, normed)
    return Segment("final norm", tuple(tape.body), (x,), (), y, borrows=lent)
