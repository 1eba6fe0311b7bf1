"""Tensor parallel: each rank holds some columns, rows or heads of every matrix; sequence parallel: and of the stream.

The residual stream between them is whole on every rank, or under sequence parallelism a part of the sequence.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

from parallelism.base import Strategy
from parallelism.tensor.plan import plan_of, style_of
from parallelism.tensor.traffic import messages
from suite.layout import Layout
from suite.record import Component

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case


class _Divisible(Protocol):
    """What a family's module has for tensor parallelism to set."""

    loss: Callable[..., Tensor]
    """(head, hidden, labels) -> the loss, with the cross-entropy as a keyword"""
    stream_shards: int
    """of so many equal parts of the tokens the stream holds one"""


def _tied(model: nn.Module) -> dict[str, str]:
    """Names of parameters that are others by a second name, and those others' names."""
    first: dict[nn.Parameter, str] = {}
    names = ((name, item) for name, item in model.named_parameters(remove_duplicate=False))
    return {name: first[item] for name, item in names if first.setdefault(item, name) != name}


def apply(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Divide the model's weights over mesh["tp"] and put the collectives where the plan says. A pipeline's stage has
    some of the plan's modules; the rest of the plan is another stage's."""
    from torch.distributed.tensor.parallel import parallelize_module

    from parallelism.tensor.regions import Regions
    from parallelism.tensor.styles import STYLES
    from parallelism.tensor.vocab_loss import VocabularyCrossEntropy
    from suite.models.alibi import Alibi
    from suite.models.dropout import SequenceDropout
    from suite.models.sinusoidal import Sinusoids

    assert mesh is not None
    regions = Regions(mesh["tp"], case.layout.sequence_parallel)
    tied = _tied(model)
    plan = plan_of(case)
    styles = {name: style for name, _ in model.named_modules() if (style := style_of(plan, name)) is not None}
    parallelize_module(model, mesh["tp"], {name: STYLES[style](regions) for name, style in styles.items()})
    for name, first in tied.items():
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, model.get_parameter(first))
    whole = cast("_Divisible", model)
    whole.loss = partial(whole.loss, cross_entropy=VocabularyCrossEntropy(regions, case.model.vocab))
    whole.stream_shards = regions.ranks if case.layout.sequence_parallel else 1
    for module in model.modules():
        if isinstance(module, Alibi):
            module.part = (regions.rank, regions.ranks)
        if isinstance(module, SequenceDropout | Sinusoids) and case.layout.sequence_parallel:
            module.part = (regions.rank, regions.ranks)
    return model


def _is_used(layout: Layout) -> bool:
    return layout.tp > 1


TENSOR = Strategy(
    name="tensor",
    axis="tp",
    divides=frozenset({Component.PARAMETERS, Component.GRADIENTS, Component.OPTIMIZER, Component.ACTIVATIONS}),
    overheads="norms and row biases whole on every rank; what is gathered for columns, and its copy into order",
    sends="with sequence parallelism an all-gather and a reduce-scatter of the stream for each half of a block, forward"
    " and backward, else an all-reduce; for the loss, scalars a token; gradients of what is whole, once a step",
    is_used=_is_used,
    apply=apply,
    messages=messages,
    needs="heads, key-value heads and the MLP's width divided by tp; with sequence parallelism the sequence too",
    example={"tp": 2},
)
