"""Fully sharded data parallel: torch's FSDP2. Parameters, gradients and optimizer state are split along dimension 0;
a block's parameters are gathered before they are used and freed after."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from parallelism.base import Strategy
from parallelism.mesh import shard_mesh
from suite.layout import Layout
from suite.record import Component
from suite.spec import Precision

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case


def shard_rows(rows: int, ranks: int, rank: int) -> int:
    """Rows of dimension 0 that `rank` holds: torch.chunk's split, so the last ranks may hold fewer or none."""
    step = math.ceil(rows / ranks)
    return max(0, min(step, rows - rank * step))


def shard_elements(shape: tuple[int, ...], ranks: int, rank: int) -> int:
    """Elements of a parameter's shard, without padding: what the optimizer's state is made for."""
    return shard_rows(shape[0], ranks, rank) * math.prod(shape[1:])


def padded_elements(shape: tuple[int, ...], ranks: int) -> int:
    """Elements of a shard's storage: every rank's is padded to the first rank's."""
    return math.ceil(shape[0] / ranks) * math.prod(shape[1:])


def apply(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Shard every block, then what is left (embedding, final norm, head) as the root. In bf16-mixed, parameters are
    gathered in bf16 and gradients reduced in fp32."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    assert mesh is not None
    mixed = case.workload.precision is Precision.BF16_MIXED
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if mixed
        else MixedPrecisionPolicy()
    )
    sub_mesh = shard_mesh(mesh, case.layout)
    for block in cast("nn.ModuleDict", model.blocks).values():
        fully_shard(block, mesh=sub_mesh, mp_policy=policy, reshard_after_forward=case.layout.reshard_after_forward)
    fully_shard(model, mesh=sub_mesh, mp_policy=policy, reshard_after_forward=False)
    return model


def _is_used(layout: Layout) -> bool:
    return layout.fsdp > 1


FSDP = Strategy(
    name="fsdp",
    axis="fsdp",
    divides=frozenset({Component.PARAMETERS, Component.GRADIENTS, Component.OPTIMIZER}),
    overheads="gathered blocks (the one in use, the next one in backward), the reduce-scatter's input",
    sends="all-gather of the parameters in forward and again in backward, reduce-scatter of the gradients",
    is_used=_is_used,
    apply=apply,
    example={"fsdp": 2},
)
