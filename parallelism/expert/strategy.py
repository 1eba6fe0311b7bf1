"""Expert parallel: each rank holds some experts of every block; tokens go to their experts' ranks and come back."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, cast

from parallelism.base import Strategy
from parallelism.expert.traffic import messages
from parallelism.mesh import expert_mesh
from suite.layout import Layout
from suite.record import Component

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case
    from suite.models.experts_module import ExpertWeights


def apply(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Leave each rank of mesh["ep"] its experts of every mixture, as DTensors, and put the all-to-alls around them.
    Tensor parallelism, which comes before, may have divided the experts' widths."""
    from parallelism.expert.exchange import AllToAll
    from suite.models.experts_module import MixtureMLP

    assert mesh is not None
    for module in model.modules():
        if isinstance(module, MixtureMLP):
            _divide(module.experts, mesh, case.layout)
            module.exchange = AllToAll(mesh["ep"].get_group())
    return model


def _divide(experts: ExpertWeights, mesh: DeviceMesh, layout: Layout) -> None:
    """Keep this rank's experts. Every rank has built all of them from one seed: nothing is sent."""
    from torch import nn
    from torch.distributed.tensor import DTensor, Shard

    place = mesh["ep"].get_local_rank()
    for name, parameter in list(experts.named_parameters(recurse=False)):
        widths = tuple(parameter.placements) if isinstance(parameter, DTensor) else ()
        here = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        part = here.detach().chunk(layout.ep)[place].clone()
        spread = DTensor.from_local(
            part, expert_mesh(mesh, layout), (Shard(0), *widths), shape=parameter.shape, stride=parameter.stride()
        )
        setattr(experts, name, nn.Parameter(spread))
    experts.forward = MethodType(_forward, experts)  # type: ignore[method-assign]


def _forward(experts: nn.Module, rows: Tensor, counts: Tensor) -> Tensor:
    """The experts' outputs by this rank's parts."""
    from parallelism.tensor.styles import local
    from suite.models.experts_module import expert_outputs

    own = cast("ExpertWeights", experts)
    return expert_outputs(rows, counts, local(own.gate), local(own.up), local(own.down))


def _is_used(layout: Layout) -> bool:
    return layout.ep > 1


EXPERT = Strategy(
    name="expert",
    axis="ep",
    divides=frozenset({Component.PARAMETERS, Component.GRADIENTS, Component.OPTIMIZER}),
    overheads="rows as they come, beside those in the experts' order; a rank whose experts are chosen more often holds"
    " and computes more of them",
    sends="of every block with experts all-to-alls of counts, rows, and outputs back, and in backward two of their"
    " gradients; the experts' gradients need no reduction over ep",
    is_used=_is_used,
    apply=apply,
    messages=messages,
    needs="a model with experts, as many for each rank",
    example={"ep": 2},
)
