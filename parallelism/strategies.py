"""The table of strategies, in the order in which they are applied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallelism.base import Strategy
from parallelism.checkpointing import CHECKPOINTING
from parallelism.context import CONTEXT
from parallelism.ddp import DDP
from parallelism.fsdp import FSDP
from parallelism.zero import ZERO
from parallelism.zero_redundancy import ZERO_REDUNDANCY
from suite.layout import Layout

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy for strategy in (CONTEXT, CHECKPOINTING, FSDP, ZERO, ZERO_REDUNDANCY, DDP)
}


def strategies_of(layout: Layout) -> tuple[Strategy, ...]:
    """The strategies that a layout uses, in canonical order."""
    return tuple(strategy for strategy in STRATEGIES.values() if strategy.is_used(layout))


def parallelize(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Apply every strategy of the case's layout."""
    for strategy in strategies_of(case.layout):
        model = strategy.apply(model, mesh, case)
    return model
