"""Gradients that no wrapper reduces: collected into flat buffers, reduced, and put back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def local_gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """This rank's part of every gradient that there is."""
    gradients = (parameter.grad for parameter in parameters)
    return [each.to_local() if isinstance(each, DTensor) else each for each in gradients if each is not None]


def all_reduce_flat(tensors: Sequence[Tensor], group: dist.ProcessGroup, divide_by: int = 1) -> None:
    """Sum tensors of one type over the group, in place, in one all-reduce: a flat copy of them all."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    if divide_by > 1:
        flat /= divide_by
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
