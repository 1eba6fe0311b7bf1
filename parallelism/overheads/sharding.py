"""Probes of FSDP2: stacks of trivial units, wrapped and not, whose differences are what a unit costs its rank."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from parallelism.overheads.shapes import FEW, MANY, SIDE, TALL, UNIT_BYTES, WORK

Call = Callable[[], object]
KINDS = ("bare", "kept", "freed", "reduced")


class Unit(nn.Module):
    """Some parameters, each used once, and operators between them, after which ranks meet as ill as after a block's.
    `divided`: parts of DTensors, as beside tensor parallelism."""

    def __init__(self, parameters: int, columns: int, divided: DeviceMesh | None) -> None:
        super().__init__()
        whole: list[Tensor] = [torch.ones(SIDE, columns) for _ in range(parameters)]
        if divided is not None:
            whole = [distribute_tensor(each, divided, [Shard(0)]) for each in whole]
        self.weights = nn.ParameterList([nn.Parameter(each) for each in whole])

    def forward(self, x: Tensor) -> Tensor:
        """A product with each, and some work."""
        for weight in self.weights:
            x = x * (weight.to_local() if isinstance(weight, DTensor) else weight)
            for _ in range(WORK):
                x = F.silu(x)
        return x


def calls(divided: bool) -> dict[str, Call]:
    """Stacks of units of few and of many parameters, of every kind, and the collectives of one unit alone: what tells
    the host's work from the collectives'."""
    ranks = dist.get_world_size()
    mesh = init_device_mesh("cpu", (ranks, 1), mesh_dim_names=("fsdp", "tp"))
    found: dict[str, Call] = {}
    for parameters in (FEW, MANY):
        stacks = stacks_of(mesh["fsdp"], parameters, SIDE, mesh["tp"] if divided else None)
        found |= {f"{kind}.{parameters}": call for kind, call in stacks.items()}
        whole = torch.ones(parameters * UNIT_BYTES // 4)
        part = torch.ones(len(whole) // ranks)
        found[f"gather.{parameters}"] = partial(dist.all_gather_into_tensor, whole, part)
        found[f"scatter.{parameters}"] = partial(dist.reduce_scatter_tensor, part, whole)
    return found


def unit_calls(ranks: int, parameters: int, payload_bytes: int, divided: bool) -> dict[str, Call]:
    """Stacks of units of so many parameters with so many bytes together, in groups of neighbours."""
    shape = (dist.get_world_size() // ranks, ranks, 1)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "fsdp", "tp"))
    columns = max(1, payload_bytes // (4 * SIDE * parameters))
    return stacks_of(mesh["fsdp"], parameters, columns, mesh["tp"] if divided else None)


def stacks_of(mesh: DeviceMesh, parameters: int, columns: int, divided: DeviceMesh | None) -> dict[str, Call]:
    """A training step's passes over `TALL` units: bare; kept gathered after forward; freed; freed and reduced."""
    found: dict[str, Call] = {}
    for kind in KINDS:
        stack = nn.Sequential(*(Unit(parameters, columns, divided) for _ in range(TALL)))
        if kind != "bare":
            _shard(stack, mesh, is_freed=kind != "kept", is_reduced=kind == "reduced")
        found[kind] = _step(stack, columns, forgets=kind == "reduced")
    return found


def _shard(stack: nn.Sequential, mesh: DeviceMesh, is_freed: bool, is_reduced: bool) -> None:
    for unit in stack:
        fully_shard(unit, mesh=mesh, reshard_after_forward=is_freed)
    root = cast("FSDPModule", fully_shard(stack, mesh=mesh))
    root.set_requires_gradient_sync(is_reduced)


def _step(stack: nn.Module, columns: int, forgets: bool) -> Call:
    """Forward and backward; gradients are added to those that are there, or forgotten."""
    x = torch.ones(SIDE, columns, requires_grad=True)
    parameters: list[Any] = list(stack.parameters())

    def step() -> None:
        stack(x).sum().backward()
        if forgets:
            for parameter in parameters:
                parameter.grad = None

    return step
