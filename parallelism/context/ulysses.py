"""Ulysses: all-to-alls between shards of the sequence and shards of the heads, around attention (arXiv:2309.14509)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from suite.models.blocks import rotate
from suite.parse import require


def ulysses_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    group: dist.ProcessGroup,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """`attend` on the whole sequence, a part of the heads on each rank: [b, s, a, d].

    q [b, s, a, d] and k, v [b, s, kv, d] are contiguous parts of the sequence, in the order of the ranks, with the
    same s on all n of them. `attend` gets [b, n s, a/n, d] and [b, n s, kv/n, d] and returns like its first.
    Raises SpecError unless n divides kv: copies of a key head would be sent and computed with, so a ring is cheaper.
    """
    ranks = group.size()
    for name, heads in (("heads", q.shape[2]), ("kv_heads", k.shape[2])):
        require(
            heads % ranks == 0,
            f"model.{name}: {heads} % cp({ranks}) != 0: the all-to-all gives each rank whole heads; use ring",
        )
    q = _ToHeads.apply(q, group)  # one by one: a shard that nobody else needs dies here
    k = _ToHeads.apply(k, group)
    v = _ToHeads.apply(v, group)
    out: Tensor = _ToSequence.apply(attend(q, k, v), group)
    return out


def to_heads(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[b, s, heads, d] of a part of the sequence -> [b, n s, heads/n, d] of the whole."""
    ranks = group.size()
    parts = _exchanged(x.unflatten(2, (ranks, -1)).permute(2, 0, 1, 3, 4), group)
    return parts.transpose(0, 1).flatten(1, 2)


def to_sequence(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The inverse of `to_heads`."""
    ranks = group.size()
    parts = _exchanged(x.unflatten(1, (ranks, -1)).transpose(0, 1), group)
    return parts.permute(1, 2, 0, 3, 4).flatten(2, 3)


def _exchanged(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Part i of dimension 0 goes to rank i; what comes back is in the order of the ranks."""
    parts = parts.contiguous()
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group)
    return received


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return to_heads(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return to_sequence(grad, ctx.group), None


class _ToSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return to_sequence(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return to_heads(grad, ctx.group), None


class UlyssesCore(nn.Module):
    """A block's own attention core, given the whole sequence of some of the heads."""

    def __init__(self, core: nn.Module, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.core = core
        self.group = group

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """q [b, s, a, d], k and v [b, s, kv, d], rope at this rank's positions -> [b, s, a, d]."""
        if rope is None:
            return ulysses_attention(q, k, v, self.group, self._attend)
        return ulysses_attention(rotate(q, *rope), rotate(k, *rope), v, self.group, self._attend)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = self.core(q, k, v, None)
        return out
