"""The table of strategies, in the order in which they are applied."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from parallelism.base import Strategy
from parallelism.checkpointing import CHECKPOINTING
from parallelism.context.strategy import CONTEXT
from parallelism.data.ddp import DDP
from parallelism.data.fsdp import FSDP
from parallelism.data.replicate import REPLICATE
from parallelism.expert.strategy import EXPERT
from parallelism.pipeline.strategy import PIPELINE
from parallelism.tensor.strategy import TENSOR
from parallelism.zero.redundancy import ZERO_REDUNDANCY
from parallelism.zero.strategy import ZERO
from suite.layout import Layout

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from parallelism.pipeline.parts import StageParts
    from suite.case import Case

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (PIPELINE, TENSOR, CONTEXT, EXPERT, CHECKPOINTING, FSDP, ZERO, ZERO_REDUNDANCY, DDP, REPLICATE)
}


def strategies_of(layout: Layout) -> tuple[Strategy, ...]:
    """The strategies that a layout uses, in canonical order."""
    return tuple(strategy for strategy in STRATEGIES.values() if strategy.is_used(layout))


def parallelize(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Apply every strategy of the case's layout: to the model, or to each stage that the pipeline leaves this rank."""
    strategies = strategies_of(case.layout)
    if PIPELINE not in strategies:
        return _spread(model, mesh, case, strategies)
    stages = cast("StageParts", PIPELINE.apply(model, mesh, case))
    stages.replace(lambda part: _spread(part, mesh, case, strategies[1:]))
    return stages


def _spread(model: nn.Module, mesh: DeviceMesh | None, case: Case, strategies: tuple[Strategy, ...]) -> nn.Module:
    for strategy in strategies:
        model = strategy.apply(model, mesh, case)
    return model
