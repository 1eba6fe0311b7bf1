"""What a strategy is: facts that formulas use, and `apply`, which spreads a single-device model over a mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from suite.layout import Layout
from suite.record import Component

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case

    Apply = Callable[[nn.Module, DeviceMesh | None, Case], nn.Module]


@dataclass(frozen=True)
class Strategy:
    """One way of spreading training. `apply` is called only in a worker, so the facts need no torch.

    divides   components that each rank holds a part of
    overheads what it costs on top, in words
    sends     what it sends in a step, in words
    needs     what it asks of the model, the workload or the machine, in words
    example   the settings of the smallest layout that uses it
    """

    name: str
    axis: str
    divides: frozenset[Component]
    overheads: str
    sends: str
    is_used: Callable[[Layout], bool]
    apply: Apply
    needs: str = "nothing"
    example: Mapping[str, Any] = field(default_factory=dict)
