"""Cross-entropy over logits that are divided along the vocabulary.

Each rank keeps its columns; three figures a token travel (arXiv:1909.08053, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from parallelism.tensor.regions import Regions
from suite.models.base import IGNORED
from suite.share import own_rows


@dataclass(frozen=True)
class VocabularyCrossEntropy:
    """torch's cross_entropy on [n, V/t] logits of every rank and [n] labels in the whole vocabulary."""

    regions: Regions
    vocab: int

    def __call__(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """Mean or sum over the tokens, in nats, the same on every rank; what is not asked adds nothing to a sum."""
        rows = own_rows(self.vocab, self.regions.ranks, self.regions.rank)
        each = _EachToken.apply(logits, labels, rows, self.regions.mesh.get_group())
        return each.mean() if reduction == "mean" else each.masked_fill(labels == IGNORED, 0.0).sum()


class _EachToken(torch.autograd.Function):
    """log sum exp(logits) - logits[label], [n]. Two all-reduces: the largest logit of each token; then, below it, the
    sum of the exponentials and the label's logit, which one rank has and the others add zero to."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, rows: range, group: dist.ProcessGroup) -> Tensor:
        largest = logits.amax(dim=1)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
        shares = logits - largest.unsqueeze(1)
        is_foreign = (labels < rows.start) | (labels >= rows.stop)
        columns = (labels - rows.start).masked_fill_(is_foreign, 0).unsqueeze(1)
        sums = torch.empty((2, len(labels)), dtype=logits.dtype, device=logits.device)
        sums[1] = shares.gather(1, columns).squeeze(1).masked_fill_(is_foreign, 0.0)
        torch.sum(shares.exp_(), dim=1, out=sums[0])
        dist.all_reduce(sums, group=group)
        shares /= sums[0].unsqueeze(1)
        ctx.save_for_backward(shares, columns, is_foreign)
        return sums[0].log() - sums[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        shares, columns, is_foreign = ctx.saved_tensors
        weights = gradient.unsqueeze(1)
        to_label = gradient.masked_fill(is_foreign, 0.0).neg_().unsqueeze(1)
        return (shares * weights).scatter_add_(1, columns, to_label), None, None, None
