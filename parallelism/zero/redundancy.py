"""ZeRO-1 by torch: ZeroRedundancyOptimizer under DDP. Each rank updates whole parameters and broadcasts them."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import TYPE_CHECKING

from parallelism.base import Strategy
from parallelism.zero.config import Parameter, groups_of
from suite.collectives import Collective, Message
from suite.layout import Layout
from suite.record import Component

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.optim import ZeroRedundancyOptimizer

    from suite.case import Case
    from suite.operators import Ledger

FP32 = 4


def is_zero_redundancy(layout: Layout) -> bool:
    """Is the optimizer torch's ZeRO-1?"""
    return layout.zero == 1 and not layout.is_deepspeed


def shares(ledger: Ledger, ranks: int) -> list[list[Parameter]]:
    """The parameters that each rank updates, in its optimizer's order: group by group, the largest first, to the rank
    that has the least so far (torch/distributed/optim/zero_redundancy_optimizer.py, _partition_parameters)."""
    mine: list[list[Parameter]] = [[] for _ in range(ranks)]
    sums = [0] * ranks
    for group in groups_of(ledger):
        for item in sorted(group, key=lambda item: item.elements, reverse=True):
            rank = sums.index(min(sums))
            mine[rank].append(item)
            sums[rank] += item.elements
    return mine


def share_of_rank(case: Case, ledger: Ledger, rank: int) -> list[Parameter]:
    """The parameters that a rank updates."""
    layout = case.layout
    place = layout.place("dp", rank) * layout.cp + layout.place("cp", rank)  # among its replicas, which cp makes too
    return shares(ledger, layout.replica_ranks)[place]


def messages(case: Case, ledger: Ledger, rank: int) -> tuple[Message, ...]:
    """A broadcast of every new parameter by the rank that updated it, once a step. DDP's all-reduce is DDP's."""
    sizes = Counter(item.elements * FP32 for group in groups_of(ledger) for item in group)
    return tuple(
        Message(
            Collective.BROADCAST, "dp", case.layout.replica_ranks, payload, count, "spread the new parameters",
            "parameter's elements*4", "zero_redundancy_optimizer.py, _sync_params",
        )
        for payload, count in sizes.items()
    )  # fmt: skip


def shard_optimizer(model: nn.Module, group: dist.ProcessGroup, case: Case) -> ZeroRedundancyOptimizer:
    """The case's optimizer with its state spread over the ranks of a group, which hold the same parameters.

    Its `state` is the local optimizer's, where a memory probe looks for it; the class keeps its own for checkpoints.
    """
    from torch.distributed.optim import ZeroRedundancyOptimizer

    from parallelism.optimizers import build_optimizer

    whole = build_optimizer(model, case)
    groups = [{"params": item["params"], "weight_decay": item["weight_decay"]} for item in whole.param_groups]
    taken = inspect.signature(type(whole)).parameters
    settings = {name: value for name, value in whole.defaults.items() if name in taken}
    optimizer = ZeroRedundancyOptimizer(groups, type(whole), process_group=group, **settings)
    optimizer.state = optimizer.optim.state
    return optimizer


def apply(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Nothing: the model is DDP's, and the optimizer is sharded when it is made."""
    return model


ZERO_REDUNDANCY = Strategy(
    name="zero-redundancy",
    axis="zero",
    divides=frozenset({Component.OPTIMIZER}),
    overheads="whole parameters go to ranks, so the largest may unbalance them; DDP's buckets",
    sends="DDP's all-reduce, and a broadcast of every parameter after the update",
    is_used=is_zero_redundancy,
    apply=apply,
    messages=messages,
    needs="dp > 1 and plain tensors: no tp",
    example={"dp": 2, "zero": 1, "engine": "torch"},
)
