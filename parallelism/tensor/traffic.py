"""What tensor parallelism sends in a step, by formula."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parallelism.data.fsdp import shard_elements, shard_place
from suite.collectives import Collective, Message
from suite.formats import formats_of
from suite.layout import RecomputeKind
from suite.operators import Ledger, OperatorKind, Segment, Split, Weight
from suite.spec import LOSS_CHUNKS, LossKernel

if TYPE_CHECKING:
    from suite.case import Case

SEQUENCE = "Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2"
MEGATRON = "Shoeybi et al. 2019, arXiv:1909.08053, section 3"
FP32_BYTES = 4
#: the purpose of the one message that is sent once a step, not for every micro-batch
ONCE_A_STEP = "gradients of norms, row biases and positions"


@dataclass(frozen=True)
class Uses:
    """How often the stream enters and leaves regions of divided operators in a micro-batch, on this rank's part of
    the model."""

    embeddings: int
    blocks: int
    reruns: int
    heads: int

    @classmethod
    def of(cls, case: Case, ledger: Ledger) -> Uses:
        """Counted in the ledger's segments, of which a pipeline's stage has some."""
        blocks = [int(placed.prefix.rpartition(".")[2]) for placed in ledger.segments if placed.prefix]
        return cls(
            embeddings=sum(
                count * sum(weight.split is Split.VOCAB for weight in _tables(segment))
                for segment, count in ledger.counts.items()
            ),
            blocks=len(blocks),
            reruns=sum(case.layout.recompute.covers_block(index) for index in blocks),
            heads=sum(placed.segment.name in ledger.loss for placed in ledger.segments),
        )


def messages(case: Case, ledger: Ledger, rank: int) -> tuple[Message, ...]:
    """A rank's collectives over tp in one step; the ledger's weights are its parts.

    Counted, every micro-batch: the stream into and out of each half of a block, out of the embedding and into the head,
    forward, backward, and again where a block is rerun (up to the last tensor that it keeps: its last sum is made again
    only for a dropout that comes after it); the loss's figures of each token. Once a step: the gradients of what is
    whole on every rank. Not counted: clipping's norm, which is the trainer's. What the stream is sent in: the
    compute type, but for the embedding's output under autocast, which is fp32.
    """
    if case.layout.tp == 1:
        return ()
    uses = Uses.of(case, ledger)
    rows = _sequence_rows(case, uses) if case.layout.sequence_parallel else _whole_rows(case, uses)
    return (*rows, *_loss_rows(case, uses), *whole_gradients(case, ledger, rank))


def _sequence_rows(case: Case, uses: Uses) -> list[Message]:
    """All-gathers into a region and reduce-scatters out of it; backward the other way round."""
    gather, scatter = Collective.ALL_GATHER, Collective.REDUCE_SCATTER
    wide, narrow = _stream_bytes(case), _compute_bytes(case)
    again = _sums_made_again(case)
    return [
        _row(case, scatter, uses.embeddings, wide, "the embedding's output, summed"),
        _row(case, gather, uses.embeddings, wide, "the gradient of the embedding's output"),
        _row(case, gather, 2 * uses.blocks, narrow, "the inputs of attention and MLP"),
        _row(case, scatter, 2 * uses.blocks, narrow, "the outputs of attention and MLP, summed"),
        _row(case, gather, 2 * uses.blocks, narrow, "the gradients of the outputs of attention and MLP"),
        _row(case, scatter, 2 * uses.blocks, narrow, "the gradients of the inputs of attention and MLP, summed"),
        _row(case, gather, 2 * uses.reruns, narrow, "the inputs of attention and MLP, rerun"),
        _row(case, scatter, again * uses.reruns, narrow, "the outputs of attention and MLP, rerun"),
        _row(case, gather, uses.heads, narrow, "the head's input"),
        _row(case, scatter, uses.heads, narrow, "the gradient of the head's input, summed"),
    ]


def _whole_rows(case: Case, uses: Uses) -> list[Message]:
    """All-reduces out of a region forward, and into it backward."""
    wide, narrow = _stream_bytes(case), _compute_bytes(case)
    total, again = Collective.ALL_REDUCE, _sums_made_again(case)
    return [
        _row(case, total, uses.embeddings, wide, "the embedding's output, summed"),
        _row(case, total, 2 * uses.blocks, narrow, "the outputs of attention and MLP, summed"),
        _row(case, total, 2 * uses.blocks, narrow, "the gradients of the inputs of attention and MLP, summed"),
        _row(case, total, again * uses.reruns, narrow, "the outputs of attention and MLP, rerun"),
        _row(case, total, uses.heads, narrow, "the gradient of the head's input, summed"),
    ]


def _row(case: Case, collective: Collective, uses: int, nbytes: int, purpose: str) -> Message:
    """One use of the whole stream of a micro-batch, [b, s/cp, h]."""
    elements = _tokens(case) * case.model.hidden
    source = SEQUENCE if case.layout.sequence_parallel else MEGATRON
    count = uses * case.workload.micro_batches
    return Message(
        collective, "tp", case.layout.tp, elements * nbytes, count, purpose, f"b*s/cp*h*{nbytes}", source
    )  # fmt: skip


def _loss_rows(case: Case, uses: Uses) -> list[Message]:
    """Three fp32 figures a token: the largest logit; the sum of exponentials and the label's logit. Over slices of the
    sequence, each slice's again when it is rerun."""
    tokens, count = _tokens(case), uses.heads * case.workload.micro_batches
    kept = (Collective.ALL_REDUCE, "tp", case.layout.tp)
    lengths = {tokens: count}
    if case.workload.loss is LossKernel.CHUNKED:
        lengths = {}
        for length in _slices(case.workload.seq_len // case.layout.cp):
            part = case.workload.micro_batch * length
            lengths[part] = lengths.get(part, 0) + 2 * count
    return [
        Message(*kept, figures * part * FP32_BYTES, times, purpose, f"{figures}*tokens*4", MEGATRON)
        for part, times in lengths.items()
        for figures, purpose in (
            (1, "the largest logit of each token"),
            (2, "each token's sum of exponentials and its label's logit"),
        )
    ]


def _slices(length: int) -> list[int]:
    """Tokens of each slice of the chunked loss: torch.chunk's split."""
    step = math.ceil(length / LOSS_CHUNKS)
    return [min(step, length - start) for start in range(0, length, step)]


def whole_gradients(case: Case, ledger: Ledger, rank: int) -> list[Message]:
    """What is sent once a step. Under sequence parallelism, gradients of norms, row biases and positions, from every
    rank's part of the sequence: one flat all-reduce, under FSDP2 of this rank's shards."""
    if not case.layout.sequence_parallel:
        return []
    ranks, place = case.layout.shard_ranks, shard_place(case.layout, rank)
    nbytes = formats_of(case).gradients.nbytes
    elements = sum(
        count * shard_elements(tuple(size.value for size in weight.shape), ranks, place)
        for segment, count in ledger.counts.items()
        for weight in segment.weights
        if weight.split is Split.NONE
    )
    return [
        Message(
            Collective.ALL_REDUCE, "tp", case.layout.tp, elements * nbytes, int(elements > 0),
            ONCE_A_STEP, f"elements*{nbytes}", SEQUENCE,
        )
    ]  # fmt: skip


def _tables(segment: Segment) -> list[Weight]:
    """The weights that are looked up."""
    return [
        weight
        for operator in segment.operators()
        if operator.kind is OperatorKind.EMBEDDING
        for weight in operator.weights
    ]


def _tokens(case: Case) -> int:
    """Tokens of a micro-batch that the tensor-parallel ranks have together."""
    return case.workload.micro_batch * (case.workload.seq_len // case.layout.cp)


def _sums_made_again(case: Case) -> int:
    """How many of a block's two sums a rerun makes: the MLP's only if a dropout, which keeps its mask, follows; none
    where they are kept."""
    if case.layout.recompute.kind is RecomputeKind.SELECTIVE_OP:
        return 0
    return 2 if case.model.dropout else 1


def _compute_bytes(case: Case) -> int:
    return formats_of(case).numerics.compute.nbytes


def _stream_bytes(case: Case) -> int:
    """The residual stream's: FSDP2's policy casts the embedding's weight, autocast does not."""
    return formats_of(case).numerics.stream.nbytes
