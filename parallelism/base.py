"""What a strategy is: facts that formulas use, and `apply`, which spreads a single-device model over a mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from suite.collectives import Message
from suite.layout import Layout
from suite.record import Component

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case
    from suite.operators import Ledger

    Apply = Callable[[nn.Module, DeviceMesh | None, Case], nn.Module]
    #: (case, ledger, rank) -> what that rank sends in one steady step
    Messages = Callable[[Case, Ledger, int], tuple[Message, ...]]


def sends_nothing(case: Case, ledger: Ledger, rank: int) -> tuple[Message, ...]:
    """The messages of a strategy that has none of its own."""
    return ()


@dataclass(frozen=True)
class Strategy:
    """One way of spreading training. `apply` is called only in a worker, so the facts need no torch.

    divides   components that each rank holds a part of
    overheads what it costs on top, in words
    sends     what it sends in a step, in words
    messages  the same in bytes: what a rank sends in one steady step, by formula
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
    messages: Messages = sends_nothing
    needs: str = "nothing"
    example: Mapping[str, Any] = field(default_factory=dict)
