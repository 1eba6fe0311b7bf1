"""Probes of DTensors: what taking a rank's part out costs, adding to its gradient, clipping and updating it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from parallelism.clipping import clip_gradients
from parallelism.overheads.shapes import LOTS, SIDE, SOME

Call = Callable[[], object]


def calls() -> dict[str, Call]:
    """Each thing that is done to parameters, done to plain ones and to DTensors."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found: dict[str, Call] = {}
    for kind in ("plain", "divided"):

        def made(count: int, kind: str = kind) -> list[nn.Parameter]:
            rows = SIDE if kind == "plain" else SIDE * mesh.size()
            whole: list[Tensor] = [torch.ones(rows, SIDE) for _ in range(count)]
            if kind == "divided":
                whole = [distribute_tensor(each, mesh, [Shard(0)]) for each in whole]
            return [nn.Parameter(each) for each in whole]

        for count in (SOME, LOTS):
            found[f"first.{kind}.{count}"] = _linears(made(count), forgets=True)
            found[f"again.{kind}.{count}"] = _linears(made(count), forgets=False)
            found[f"clip.{kind}.{count}"] = _clipped(made(count))
            found[f"update.{kind}.{count}"] = _updated(made(count))
    return found


def _local(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight


def _linears(weights: list[nn.Parameter], forgets: bool) -> Call:
    """Forward and backward of a chain of linears; gradients forgotten, or added to those that are there."""
    x = torch.ones(1, SIDE, requires_grad=True)

    def step() -> None:
        y = x
        for weight in weights:
            y = F.linear(y, _local(weight))
        y.sum().backward()
        if forgets:
            for weight in weights:
                weight.grad = None

    return step


def _with_gradients(weights: list[nn.Parameter]) -> list[nn.Parameter]:
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    return weights


def _clipped(weights: list[nn.Parameter]) -> Call:
    _with_gradients(weights)
    return lambda: clip_gradients(weights, 1e9)


def _updated(weights: list[nn.Parameter]) -> Call:
    optimizer = torch.optim.AdamW(_with_gradients(weights), lr=1e-9, fused=True)
    return optimizer.step
