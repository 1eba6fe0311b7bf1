"""The exchange: rows go to the ranks that hold their experts by an all-to-all, and outputs come back by another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Rows:
    """Rows that a rank sends to each rank of a group, and receives from each."""

    group: dist.ProcessGroup
    sent: Sequence[int]
    received: Sequence[int]

    def dispatch(self, rows: Tensor, order: Tensor) -> Tensor:
        """Rows sorted by expert [R, h] -> those of all ranks for the experts here, in that order."""
        return self._swapped(rows.contiguous(), self.sent, self.received).index_select(0, order)

    def combine(self, outputs: Tensor, inverse: Tensor) -> Tensor:
        """The inverse of `dispatch`, given the inverse of the order."""
        return self._swapped(outputs.index_select(0, inverse), self.received, self.sent)

    def _swapped(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        arrived = rows.new_empty(sum(received), rows.shape[1])
        dist.all_to_all_single(arrived, rows, list(received), list(sent), group=self.group)
        return arrived


@dataclass(frozen=True)
class AllToAll:
    """`MixtureMLP.exchange` of a rank of a group, each rank of which holds as many consecutive experts.

    First the ranks tell each other how many rows each expert gets, one all-to-all of counts [E]; the host waits for
    them, for it has to know how much room the rows need. Rows to send are sorted by expert, and so by rank; what comes
    is sorted by sender, then by expert, and put into the experts' order. Source: arXiv:2006.16668, section 3.2
    (GShard's dispatch and combine), here without padding.
    """

    group: dist.ProcessGroup

    def __call__(self, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """rows [R, h] sorted by expert, counts [E] -> all ranks' rows for the experts here, sorted by expert; how many
        each of them has, [E / ranks]; and what takes as many outputs back, to the order of `rows`."""
        with torch.no_grad():
            coming = self._counts_of_all(counts)  # by sender, by expert
            order, inverse = _order(coming)
            moved = Rows(self.group, *torch.stack((counts.view(coming.shape).sum(1), coming.sum(1))).tolist())
        arrived: Tensor = _Dispatch.apply(rows, order, inverse, moved)
        return arrived, coming.sum(0), lambda outputs: _Combine.apply(outputs, order, inverse, moved)

    def _counts_of_all(self, counts: Tensor) -> Tensor:
        """What each rank says of the experts here, [ranks, E / ranks]."""
        coming = torch.empty_like(counts)
        dist.all_to_all_single(coming, counts, group=self.group)
        return coming.view(self.group.size(), -1)


def _order(coming: Tensor) -> tuple[Tensor, Tensor]:
    """The order that sorts rows by expert that lie as `coming` counts them, by sender and then by expert; its
    inverse."""
    senders, experts = coming.shape
    expert = torch.arange(experts, device=coming.device).repeat(senders)
    order = expert.repeat_interleave(coming.flatten()).argsort(stable=True)
    return order, torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor, moved: Rows) -> Tensor:
        ctx.moved = moved
        ctx.save_for_backward(inverse)
        return moved.dispatch(rows, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return ctx.moved.combine(gradient, inverse), None, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, order: Tensor, inverse: Tensor, moved: Rows) -> Tensor:
        ctx.moved = moved
        ctx.save_for_backward(order)
        return moved.combine(outputs, inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (order,) = ctx.saved_tensors
        return ctx.moved.dispatch(gradient, order), None, None, None
