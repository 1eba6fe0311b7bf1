"""Gradient clipping over every kind of sharding: plain tensors, and DTensors of one or several meshes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def clip_gradients(
    parameters: Iterable[nn.Parameter], clip_norm: float, stages: dist.ProcessGroup | None = None
) -> Tensor:
    """Scale gradients so that their 2-norm over all ranks is at most clip_norm; the norm before that, a scalar.

    DTensors' norms are summed over their meshes; plain tensors count once, so that ranks that hold replicas agree.
    `stages` are the pipeline's ranks, whose parts of the model are summed too. Each kind of tensor costs one
    all-reduce of a scalar for each mesh dimension that it is sharded over.
    """
    groups: dict[object, list[Tensor]] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None:
            key = (gradient.device_mesh, gradient.placements) if isinstance(gradient, DTensor) else None
            groups.setdefault(key, []).append(gradient)
    norms = [_full(nn.utils.get_total_norm(gradients)) for gradients in groups.values()]
    total = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    if stages is not None:
        squared = total.square()
        dist.all_reduce(squared, group=stages)
        total = squared.sqrt()
    if math.isfinite(clip_norm):
        scale = torch.clamp(clip_norm / (total + 1e-6), max=1.0)  # as torch.nn.utils.clip_grad_norm_
        for gradients in groups.values():
            for gradient in gradients:
                local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
                local.mul_(scale)
    return total


def _full(norm: Tensor) -> Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
