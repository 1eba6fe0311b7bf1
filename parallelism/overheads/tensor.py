"""Probes of tensor parallelism: stacks of halves of blocks, divided over ranks and undivided at a rank's sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

from parallelism.overheads.shapes import HALVES
from parallelism.tensor.regions import Regions
from parallelism.tensor.styles import Columns, EnterBefore, Rows

Call = Callable[[], object]


class Divided(nn.Module):
    """Two projections by columns, their product, one by rows: as a SwiGLU MLP."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, h] -> [b, s, h]."""
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class Half(nn.Module):
    """Half a block: a norm, what the stream enters and leaves, the residual sum."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.divided = Divided(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        """The stream with the half's part."""
        y: Tensor = x + self.divided(self.norm(x))
        return y


def calls(ranks: int, sequences: int, tokens: int, width: int, sequence_parallel: bool) -> dict[str, Call]:
    """A stack's forward pass, and with its backward pass: divided in groups of so many neighbours, and undivided
    with as many columns as a rank has. Of an undivided one norms and sums see all tokens, also where under sequence
    parallelism a rank's see a part."""
    mesh = init_device_mesh("cpu", (dist.get_world_size() // ranks, ranks), mesh_dim_names=("dp", "tp"))["tp"]
    regions = Regions(mesh, sequence_parallel)
    divided = nn.Sequential(*(_divided(width, mesh, regions) for _ in range(HALVES)))
    bare = nn.Sequential(*(Half(width, width) for _ in range(HALVES)))
    found: dict[str, Call] = {}
    part = tokens // ranks if sequence_parallel else tokens
    for kind, stack, own in (("divided", divided, part), ("bare", bare, tokens)):
        x = torch.randn(sequences, own, width, requires_grad=True)
        found[f"{kind}.forward"] = partial(stack, x)
        found[f"{kind}.whole"] = partial(_step, stack, x)
    return found


def _divided(width: int, mesh: DeviceMesh, regions: Regions) -> Half:
    half = Half(width, width * mesh.size())
    parallelize_module(
        half,
        mesh,
        {
            "divided": EnterBefore(regions),
            "divided.gate": Columns(regions),
            "divided.up": Columns(regions),
            "divided.down": Rows(regions),
        },
    )
    return half


def _step(stack: nn.Module, x: Tensor) -> None:
    stack(x).sum().backward()
    for parameter in stack.parameters():
        parameter.grad = None
