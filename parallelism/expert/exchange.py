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
class Route:
    """What a rank sends and receives in one exchange.

    Rows to send are sorted by expert, and so by rank. What comes is sorted by sender, then by expert; `order` puts it
    by expert, then by sender, and `inverse` back.
    """

    group: dist.ProcessGroup
    sent: Sequence[int]
    """rows to each rank"""
    received: Sequence[int]
    """rows from each rank"""
    order: Tensor
    inverse: Tensor

    def dispatch(self, rows: Tensor) -> Tensor:
        """Rows sorted by expert [R, h] -> those of all ranks for the experts here, sorted by expert."""
        return self._swapped(rows.contiguous(), self.sent, self.received).index_select(0, self.order)

    def combine(self, outputs: Tensor) -> Tensor:
        """The inverse of `dispatch`."""
        return self._swapped(outputs.index_select(0, self.inverse), self.received, self.sent)

    def _swapped(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        arrived = rows.new_empty(sum(received), rows.shape[1])
        dist.all_to_all_single(arrived, rows, list(received), list(sent), group=self.group)
        return arrived


@dataclass(frozen=True)
class AllToAll:
    """`MixtureMLP.exchange` of a rank of a group, each rank of which holds as many consecutive experts.

    First the ranks tell each other how many rows each expert gets, one all-to-all of counts [E]; the host waits for
    them, for it has to know how much room the rows need. Source: arXiv:2006.16668, section 3.2 (GShard's dispatch and
    combine), here without padding.
    """

    group: dist.ProcessGroup

    def __call__(self, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """rows [R, h] sorted by expert, counts [E] -> all ranks' rows for the experts here, sorted by expert; how many
        each of them has, [E / ranks]; and what takes as many outputs back, to the order of `rows`."""
        with torch.no_grad():
            here, route = self._route(counts)
        arrived: Tensor = _Dispatch.apply(rows, route)
        return arrived, here, lambda outputs: _Combine.apply(outputs, route)

    def _route(self, counts: Tensor) -> tuple[Tensor, Route]:
        ranks = self.group.size()
        coming = torch.empty_like(counts)
        dist.all_to_all_single(coming, counts, group=self.group)
        coming = coming.view(ranks, -1)  # by sender, by expert
        sent, received = torch.stack((counts.view(ranks, -1).sum(1), coming.sum(1))).tolist()
        own = coming.shape[1]
        expert = torch.arange(own, device=counts.device).repeat(ranks).repeat_interleave(coming.flatten())
        order = expert.argsort(stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return coming.sum(0), Route(self.group, sent, received, order, inverse)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, route: Route) -> Tensor:
        ctx.route = route
        return route.dispatch(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.route.combine(gradient), None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, outputs: Tensor, route: Route) -> Tensor:
        ctx.route = route
        return route.combine(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.route.dispatch(gradient), None
