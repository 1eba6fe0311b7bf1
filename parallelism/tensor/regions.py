"""Where the residual stream enters and leaves what tensor parallelism divides: one collective, mirrored in backward.

What a rank's columns read is gathered, what its rows give is summed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh

from suite.models.blocks import compute_dtype

#: the operators under torch.distributed's all-gather and reduce-scatter of one tensor, whose names change (2.11, 2.13)
collectives = torch.ops._c10d_functional


@dataclass(frozen=True)
class Regions:
    """The tensor-parallel mesh and how the stream between its regions is held: whole on every rank, or under
    sequence parallelism (arXiv:2205.05198, section 4.2.2) a part of the sequence on each."""

    mesh: DeviceMesh
    sequence_parallel: bool

    @property
    def ranks(self) -> int:
        """Tensor-parallel ranks."""
        return self.mesh.size()

    @property
    def rank(self) -> int:
        """This rank's place among them."""
        return self.mesh.get_local_rank()

    def enter(self, x: Tensor) -> Tensor:
        """What column-parallel operators read, [b, s, h]. Their gradients of it are each rank's part of a sum, which
        the backward pass adds up. From a part of the sequence [b, s/t, h]: all-gather, backward reduce-scatter. Under
        autocast it is cast here, once for all its readers, and so that half as much is sent."""
        x = x.to(compute_dtype(x))
        function = _Gather if self.sequence_parallel else _SumBackward
        return function.apply(x, self.mesh.get_group(), self.ranks)

    def leave(self, y: Tensor) -> Tensor:
        """The sum of what every rank's rows give, [b, s, h]; under sequence parallelism this rank's part of the
        sequence, [b, s/t, h]: reduce-scatter, backward all-gather."""
        function = _Scatter if self.sequence_parallel else _Sum
        return function.apply(y, self.mesh.get_group(), self.ranks)


def gather_sequence(x: Tensor, group: dist.ProcessGroup, ranks: int) -> Tensor:
    """[b, s/t, h] of every rank -> [b, s, h]. The ranks' parts arrive one after the other; of one sequence that is
    the whole, of several it is copied into order."""
    gathered = collectives.all_gather_into_tensor(x.contiguous(), ranks, group.group_name)
    parts = collectives.wait_tensor(gathered).view(ranks, *x.shape)
    return parts.transpose(0, 1).reshape(x.shape[0], -1, *x.shape[2:])


def scatter_sequence(y: Tensor, group: dist.ProcessGroup, ranks: int) -> Tensor:
    """The sum of every rank's [b, s, h], of which this rank keeps its part of the sequence, [b, s/t, h]."""
    parts = y.view(y.shape[0], ranks, -1, *y.shape[2:]).transpose(0, 1).contiguous()
    mine = collectives.reduce_scatter_tensor(parts.flatten(0, 1), "sum", ranks, group.group_name)
    return collectives.wait_tensor(mine)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, ranks: int) -> Tensor:
        ctx.group, ctx.ranks = group, ranks
        return gather_sequence(x, group, ranks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return scatter_sequence(gradient, ctx.group, ctx.ranks), None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, group: dist.ProcessGroup, ranks: int) -> Tensor:
        ctx.group, ctx.ranks = group, ranks
        return scatter_sequence(y, group, ranks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gather_sequence(gradient, ctx.group, ctx.ranks), None, None


class _SumBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, ranks: int) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)  # the engine's: others may read it
        dist.all_reduce(total, group=ctx.group)
        return total, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, group: dist.ProcessGroup, ranks: int) -> Tensor:
        ctx.mark_dirty(y)  # fresh, and nobody keeps it
        dist.all_reduce(y, group=group)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None
