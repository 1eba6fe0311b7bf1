"""Tensor parallel: each rank holds some columns, rows or heads of every matrix; sequence parallel: and of the stream.

The residual stream between them is whole on every rank, or under sequence parallelism a part of the sequence.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from parallelism.base import Strategy
from parallelism.tensor.plan import plan_of
from parallelism.tensor.traffic import messages
from suite.layout import Layout
from suite.record import Component

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case


def apply(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Divide the model's weights over mesh["tp"] and put the collectives where the plan says. A pipeline's stage has
    some of the plan's modules; the rest of the plan is another stage's."""
    from torch.distributed.tensor.parallel import parallelize_module

    from parallelism.tensor.regions import Regions
    from parallelism.tensor.styles import STYLES
    from parallelism.tensor.vocab_loss import VocabularyCrossEntropy
    from suite.models.alibi import Alibi
    from suite.models.decoder_module import Decoder
    from suite.models.dropout import SequenceDropout
    from suite.models.sinusoidal import Sinusoids

    assert mesh is not None
    assert isinstance(model, Decoder)
    regions = Regions(mesh["tp"], case.layout.sequence_parallel)
    is_tied = model.head is not None and model.embedding is not None and model.head.weight is model.embedding.weight
    children = dict(model.named_children())
    plan = {name: style for name, style in plan_of(case).items() if name.split(".")[0] in children}
    parallelize_module(model, mesh["tp"], {name: STYLES[style](regions) for name, style in plan.items()})
    if is_tied:
        cast("nn.Linear", model.head).weight = cast("nn.Embedding", model.embedding).weight
    model.loss = partial(model.loss, cross_entropy=VocabularyCrossEntropy(regions, case.model.vocab))
    model.stream_shards = regions.ranks if case.layout.sequence_parallel else 1
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
