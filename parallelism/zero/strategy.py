"""ZeRO by DeepSpeed's engine: stage 0 all-reduces, 1 divides the optimizer, 2 the gradients, 3 the parameters too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallelism.base import Strategy
from parallelism.zero.traffic import messages
from suite.layout import Layout
from suite.record import Component

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case


def divided_components(stage: int) -> frozenset[Component]:
    """What each rank holds a part of in a stage (arXiv:1910.02054, section 5)."""
    order = (Component.OPTIMIZER, Component.GRADIENTS, Component.PARAMETERS)
    return frozenset(order[:stage])


def apply(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Nothing: DeepSpeed takes the bare model when its engine is made, in parallelism/zero/trainer.py."""
    return model


def _is_used(layout: Layout) -> bool:
    return layout.is_deepspeed


ZERO = Strategy(
    name="zero",
    axis="zero",
    divides=divided_components(3),
    overheads="a gradient bucket; stages 1 and 2: a flat fp32 master of the rank's part, even in fp32; stage 3: a "
    "module's gathered parameters",
    sends="stages 0 and 1: all-reduce of the gradients once a step; 2: in every micro-batch; 1 and 2: all-gather of "
    "the new parameters; 3: all-gather of the parameters in forward and backward and reduce-scatter of the gradients, "
    "in every micro-batch",
    is_used=_is_used,
    apply=apply,
    messages=messages,
    needs="pp = 1, no cp or tp: the engine shards over all ranks",
    example={"dp": 2, "zero": 2},
)
