"""The recurrent model's operator ledger: what suite/models/recurrent_module.py runs, operator by operator."""

from __future__ import annotations

from dataclasses import dataclass

from suite.cpu_workspace import CpuWorkspace
from suite.layout import Recompute
from suite.models.recurrence_ledger import recurrence
from suite.models.recurrent import RecurrentSpec
from suite.operators import Array, DType, Ledger, Placed, Segment, Size, Split
from suite.share import WHOLE, Share
from suite.spec import LOSS_CHUNKS, LossKernel, Workload
from suite.tape import Backend, Numerics, Tape
from suite.tape_attention import release
from suite.tape_dropout import dropout
from suite.tape_loss import chunked_head, cross_entropy


@dataclass(frozen=True)
class _Sizes:
    """The letters of the formulas and their values."""

    b: Size
    s: Size
    h: Size
    v: Size


def recurrent_ledger(
    spec: RecurrentSpec,
    workload: Workload,
    recompute: Recompute,
    numerics: Numerics,
    backend: Backend,
    workspace: CpuWorkspace,
    share: Share = WHOLE,
) -> Ledger:
    """The ledger of one micro-batch: embedding, layers, head with loss. Under autocast the first layer reads the
    embedding's fp32, the others what the one before computed in."""

    def tape() -> Tape:
        return Tape(numerics, backend, workspace, share)

    sizes = _Sizes(
        Size("b", workload.micro_batch), Size("s", workload.seq_len), Size("h", spec.hidden), Size("V", spec.vocab)
    )
    ids, labels = (Array(name, (sizes.b, sizes.s), DType.INT64) for name in ("token ids", "labels"))
    embedding = _embedding(tape(), spec, sizes, ids)
    made: dict[tuple[DType, bool], Segment] = {}
    blocks = []
    for index in range(spec.layers):
        kind = numerics.compute if index else numerics.stream
        key = kind, recompute.covers_block(index)
        if key not in made:
            made[key] = _block(tape(), spec, sizes, *key)
        blocks.append(Placed(f"blocks.{index}", made[key]))
    hidden = Array("last layer's output", (sizes.b, sizes.s, sizes.h), numerics.compute)
    head = _head(tape(), spec, sizes, hidden, labels, workload.loss)
    return Ledger(
        segments=(Placed("", embedding), *blocks, Placed("", head)),
        loss=frozenset({head.name}),
        batch=(ids, labels),
    )


def _embedding(tape: Tape, spec: RecurrentSpec, sizes: _Sizes, ids: Array) -> Segment:
    x = tape.embedding("embedding", ids, sizes.v, sizes.h)
    x = dropout(tape, "dropout", x, spec.dropout, sizes.s)
    return Segment("embedding", tuple(tape.body), (), (ids,), x)


def _block(tape: Tape, spec: RecurrentSpec, sizes: _Sizes, kind: DType, rerun: bool) -> Segment:
    """dropout(recurrence(x)); as one region if it is rerun in backward."""
    x = Array("block input", (sizes.b, sizes.s, sizes.h), kind)
    out = recurrence(tape, "recurrence", x, spec.cell)
    out = dropout(tape, "dropout", out, spec.dropout, sizes.s)
    if rerun:
        tape.region("block", 0, (x,), (out,))
    return Segment("block", tuple(tape.body), (x,), (), out)


def _head(tape: Tape, spec: RecurrentSpec, sizes: _Sizes, hidden: Array, labels: Array, kernel: LossKernel) -> Segment:
    tied_to = "embedding.weight" if spec.tied else None
    if kernel is LossKernel.PLAIN:
        logits = tape.linear("head", hidden, sizes.v, False, Split.VOCAB, tied_to)
        cross_entropy(tape, "loss", logits, labels)
    else:
        chunked_head(tape, "head", hidden, labels, sizes.v, tied_to, min(LOSS_CHUNKS, sizes.s.value))
    release(tape, "model returns", hidden)
    return Segment("head", tuple(tape.body), (hidden,), (labels,), None)
