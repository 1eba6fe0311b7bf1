"""Gradient clipping over every kind of sharding: plain tensors, and DTensors of one or several meshes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def clip_gradients(
    parameters: Iterable[nn.Parameter],
    clip_norm: float,
    stages: dist.ProcessGroup | None = None,
    copies: Collection[nn.Parameter] = (),
) -> Tensor:
    """Scale gradients so that their 2-norm over all ranks is at most clip_norm; the norm before that, a scalar.

    A DTensor's parts are summed over the mesh dimensions that shard it; plain tensors, and what is replicated, count
    once, so that ranks that hold replicas agree. `stages` are the pipeline's ranks, whose parts of the model are summed
    too; `copies` are parameters that one of them counts already, scaled like the rest. Costs one all-reduce of a scalar
    for each mesh dimension that shards anything, in fp32 whatever the gradients are in.
    """
    counted: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = {}
    scaled: list[Tensor] = []
    again = {id(copy) for copy in copies}
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        scaled.append(local)
        if id(parameter) not in again:
            counted.setdefault(_sharding(gradient), []).append(local)
    squared = _sum_over_ranks(
        {groups: nn.utils.get_total_norm(parts).float() ** 2 for groups, parts in counted.items()}
    )
    if stages is not None:
        dist.all_reduce(squared, group=stages)
    total = squared.sqrt()
    if math.isfinite(clip_norm):
        scale = torch.clamp(clip_norm / (total + 1e-6), max=1.0)  # as torch.nn.utils.clip_grad_norm_
        for tensor in scaled:
            tensor.mul_(scale)
    return total


def _sharding(gradient: Tensor) -> tuple[dist.ProcessGroup, ...]:
    """The groups that hold parts of it, outermost first."""
    if not isinstance(gradient, DTensor):
        return ()
    mesh = gradient.device_mesh
    return tuple(mesh.get_group(dim) for dim, placed in enumerate(gradient.placements) if not placed.is_replicate())


def _sum_over_ranks(sums: dict[tuple[dist.ProcessGroup, ...], Tensor]) -> Tensor:
    """Add up what each kind of sharding comes to, innermost group first: what is then left to sum over the same outer
    groups goes on together."""
    while any(sums):
        groups = max(sums, key=len)
        part = sums.pop(groups)
        dist.all_reduce(part, group=groups[-1])
        outer = groups[:-1]
        sums[outer] = sums[outer] + part if outer in sums else part
    return sums.get((), torch.zeros(()))
