"""Context parallel: each rank holds a part of every sequence; attention sees all of it by a ring or by all-to-alls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from parallelism.base import Strategy
from suite.collectives import Collective, Message
from suite.formats import formats_of
from suite.layout import ContextMethod, Layout, RecomputeKind
from suite.record import Component
from suite.sequence_shards import sequence_positions

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case
    from suite.operators import Ledger

RING_SOURCE = "Liu et al. 2023, arXiv:2310.01889, section 3"
ULYSSES_SOURCE = "Jacobs et al. 2023, arXiv:2309.14509, section 3.2"
FP32_BYTES = 4


def apply(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Put the ring or the all-to-alls in place of every block's attention core, and tell the model which positions
    its tokens have. The caller gives each rank its columns of ids and labels (`sequence_shards.shard_sequence`) and
    averages gradients over the ranks: each one's loss is the mean over its own tokens."""
    import torch

    from parallelism.context.ring import RingCore
    from parallelism.context.ulysses import UlyssesCore
    from suite.models.blocks import Attention
    from suite.models.decoder_module import Decoder
    from suite.models.dropout import SequenceDropout

    assert mesh is not None
    assert isinstance(model, Decoder)
    group, rank, balanced = mesh["cp"].get_group(), mesh["cp"].get_local_rank(), case.layout.is_balanced
    seq_len = case.workload.seq_len
    places = [place for part in sequence_positions(seq_len, case.layout.cp, rank, balanced) for place in part]
    positions = torch.tensor(places, device=next(model.parameters()).device)
    model.own_positions = positions
    for module in model.modules():
        if isinstance(module, SequenceDropout):
            module.seq_len, module.own_positions = seq_len, positions
        elif isinstance(module, Attention):
            is_ring = case.layout.context is ContextMethod.RING
            ring = RingCore(group, balanced, case.workload.attention)
            module.core = ring if is_ring else UlyssesCore(module.core, group)
    return model


def context_messages(case: Case, blocks: Iterable[int]) -> tuple[Message, ...]:
    """What a rank sends along cp in an optimizer step for the attention of these blocks (indices in the model).

    Counted: every micro-batch's forward and backward, and the forward again where checkpointing reruns it. Not
    counted: the reduction of gradients, which data parallelism does over cp too; evaluation.
    """
    covered = [_is_rerun(case.layout, index) for index in blocks]
    if case.layout.cp == 1 or not covered:
        return ()
    passes, reruns = (case.workload.micro_batches * count for count in (len(covered), sum(covered)))
    if case.layout.context is ContextMethod.RING:
        return _ring_messages(case, passes, reruns)
    return _ulysses_messages(case, passes, reruns)


def _is_rerun(layout: Layout, index: int) -> bool:
    return layout.recompute.kind is RecomputeKind.SELECTIVE or layout.recompute.covers_block(index)


def _ring_messages(case: Case, passes: int, reruns: int) -> tuple[Message, ...]:
    """Forward: keys and values to the next rank n-1 times. Backward: the same, and n times the fp32 sums of their
    gradients, the last time to bring them home."""
    n = case.layout.cp
    keys = _shard_elements(case, case.model.kv_heads)
    nbytes = _compute_bytes(case)
    kept = (Collective.SEND, "cp", n)
    shape = "micro_batch s/cp kv_heads/tp d"
    return (
        Message(
            *kept, keys * nbytes, 2 * (n - 1) * (passes + reruns), "keys and values", f"{shape} x {nbytes}", RING_SOURCE
        ),
        Message(
            *kept, keys * nbytes, 2 * (n - 1) * passes, "keys and values again", f"{shape} x {nbytes}", RING_SOURCE
        ),
        Message(*kept, keys * FP32_BYTES, 2 * n * passes, "gradients of keys and values", f"{shape} x 4", RING_SOURCE),
    )


def _ulysses_messages(case: Case, passes: int, reruns: int) -> tuple[Message, ...]:
    """Forward: one all-to-all each of queries, keys, values and output; backward: of their gradients. A rerun of the
    core alone ends when all that it keeps is there again, before the output's."""
    n, nbytes = case.layout.cp, _compute_bytes(case)
    stops_early = case.layout.recompute.kind is RecomputeKind.SELECTIVE
    queries, keys = (_shard_elements(case, heads) * nbytes for heads in (case.model.heads, case.model.kv_heads))
    kept = (Collective.ALL_TO_ALL, "cp", n)
    wide, narrow = (f"micro_batch s/cp {heads}/tp d x {nbytes}" for heads in ("heads", "kv_heads"))
    rerun_queries = reruns * (1 if stops_early else 2)
    return (
        Message(*kept, queries, 2 * passes + rerun_queries, "queries and output", wide, ULYSSES_SOURCE),
        Message(*kept, keys, 2 * (passes + reruns), "keys and values", narrow, ULYSSES_SOURCE),
        Message(*kept, queries, 2 * passes, "gradients of queries and output", wide, ULYSSES_SOURCE),
        Message(*kept, keys, 2 * passes, "gradients of keys and values", narrow, ULYSSES_SOURCE),
    )


def _shard_elements(case: Case, heads: int) -> int:
    """Elements of a rank's queries (or keys) of one micro-batch in one block."""
    layout, workload = case.layout, case.workload
    return workload.micro_batch * (workload.seq_len // layout.cp) * (heads // layout.tp) * case.model.head_dim


def _compute_bytes(case: Case) -> int:
    return formats_of(case).numerics.compute.nbytes


def messages(case: Case, ledger: Ledger, rank: int) -> tuple[Message, ...]:
    """What a rank sends for its blocks' attention in one step."""
    return context_messages(
        case, (int(placed.prefix.rpartition(".")[2]) for placed in ledger.segments if placed.prefix)
    )


def _is_used(layout: Layout) -> bool:
    return layout.cp > 1


CONTEXT = Strategy(
    name="context",
    axis="cp",
    divides=frozenset({Component.ACTIVATIONS}),
    overheads="ring: two visiting blocks of keys and values, in backward also two of their gradients' sums in fp32;"
    " Ulysses: a packed copy of what is sent and one of what comes",
    sends="ring: keys and values to the next rank, n-1 times forward and n-1 backward, and their gradients n times;"
    " Ulysses: four all-to-alls forward and four backward, in every block",
    is_used=_is_used,
    apply=apply,
    needs="sequences of 2 cp equal chunks (cp where they are not balanced); Ulysses: key-value heads that cp divides",
    example={"cp": 2},
    messages=messages,
)
