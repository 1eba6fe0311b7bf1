"""What a rank holds between steps, tensor by tensor: an allocator rounds each of them by itself."""

from __future__ import annotations

from collections.abc import Sequence

from memory.holding import Holding, padded_shards
from memory.pipeline_buffers import BUFFER
from parallelism.data.ddp import DDP, buckets
from parallelism.pipeline.strategy import stream_bytes
from suite.case import Case
from suite.formats import formats_of
from suite.operators import Ledger
from suite.record import Component


def tensor_sizes(case: Case, ledger: Ledger, held: Holding) -> tuple[int, ...]:
    """Bytes of the tensors that a holding is made of; they sum to it.

    One a parameter, or a shard of it, in the model's order; optimizer state like the parameters, as often as it is as
    large as they are; DDP's buckets by its own rule; a pipeline's buffers one by one; token ids beside labels. ZeRO's
    stages 1 to 3 keep what they hold in flat buffers. Approximate: states that are smaller than the parameters are cut
    in proportion to them, and AdamW's 4-byte steps count as part of its moments.
    """
    if held.name == BUFFER.name:
        return (stream_bytes(case),) * (held.nbytes // stream_bytes(case))
    if held.component is Component.INPUTS:
        return _parts(held.nbytes, (1, 1))
    if case.layout.is_deepspeed and case.layout.zero:
        return (held.nbytes,)
    formats = formats_of(case)
    element = (formats.optimizer if held.component is Component.OPTIMIZER else formats.parameters).nbytes
    sizes = tuple(element * elements for count, elements in padded_shards(ledger, case.layout) for _ in range(count))
    if held.component is Component.COMMUNICATION and DDP.is_used(case.layout) and held.nbytes == sum(sizes):
        return tuple(buckets(reversed(sizes), case.layout.bucket_mib * 2**20))
    if held.component in (Component.PARAMETERS, Component.OPTIMIZER):
        return _like(sizes, held.nbytes)
    return (held.nbytes,)


def _like(sizes: Sequence[int], nbytes: int) -> tuple[int, ...]:
    """So many bytes as whole copies of tensors of these sizes, as near to a whole number of them as it goes."""
    copies = max(1, round(nbytes / sum(sizes)))
    return tuple(part for part in _parts(nbytes, tuple(sizes) * copies) if part)


def _parts(nbytes: int, shares: Sequence[int]) -> tuple[int, ...]:
    """So many bytes in parts that are to each other as the shares are; what is left over goes to the first."""
    parts = [nbytes * share // sum(shares) for share in shares]
    parts[0] += nbytes - sum(parts)
    return tuple(parts)
