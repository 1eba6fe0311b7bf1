"""A tied head that is a parameter of its own: the embedding's gradient and the head's are summed into both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parallelism.pipeline.parts import StageParts, decoder_of
from parallelism.schedules.stages import head_is_copied, rank_of_stage
from suite.case import Case


@dataclass(frozen=True)
class TiedHead:
    """What a rank holds of the two: the embedding's weight, the head's, or both (arXiv:1909.08053, section 3).

    Both start from one seed and get the same gradients, so the same update keeps them equal, bit for bit.
    """

    embedding: nn.Parameter | None
    head: nn.Parameter | None
    group: dist.ProcessGroup
    peer: int
    """pipeline rank that has the other"""

    @classmethod
    def of(cls, stages: StageParts, case: Case) -> TiedHead | None:
        """The rank's part of the pair; None where it has none, or where the two are one tensor."""
        parts, last = dict(stages.parts()), case.layout.stages - 1
        if not head_is_copied(case) or not parts.keys() & {0, last}:
            return None
        embedding = _weight(decoder_of(parts[0]).embedding) if 0 in parts else None
        head = _weight(decoder_of(parts[last]).head) if last in parts else None
        return cls(embedding, head, stages.group, rank_of_stage(case.layout, 0 if embedding is None else last))

    @property
    def copies(self) -> tuple[nn.Parameter, ...]:
        """The parameters that a norm over all stages must not count again."""
        return () if self.head is None else (self.head,)

    def sum_gradients(self) -> None:
        """Replace both gradients by their sum, shard by shard. Two ranks send each other theirs: as many bytes as an
        all-reduce between the two."""
        held = [_local(weight) for weight in (self.embedding, self.head) if weight is not None]
        if not held[0].numel():  # a shard without rows, on both ends
            return
        other = held[1] if len(held) == 2 else self._exchanged(held[0])
        held[0].add_(other)
        for gradient in held[1:]:
            gradient.copy_(held[0])

    def _exchanged(self, mine: Tensor) -> Tensor:
        theirs = torch.empty_like(mine, memory_format=torch.contiguous_format)
        peer = dist.get_global_rank(self.group, self.peer)
        operations = [
            dist.P2POp(dist.isend, mine.contiguous(), peer, self.group),
            dist.P2POp(dist.irecv, theirs, peer, self.group),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        return theirs


def _weight(module: nn.Module | None) -> nn.Parameter:
    assert module is not None
    return module.get_parameter("weight")


def _local(weight: nn.Parameter) -> Tensor:
    """The gradient as this rank holds it."""
    gradient = weight.grad
    assert gradient is not None
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
