"""Tensor parallel: each rank holds some columns, rows or heads of every matrix and of the vocabulary; with sequence
parallelism also its part of the residual stream. The plan is read off the operator ledger."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, cast

from parallelism.base import Strategy
from parallelism.tensor_traffic import messages
from suite.layout import Layout, Recompute
from suite.models.ledgers import ledger_of
from suite.operators import Ledger, Operator, OperatorKind, Split
from suite.record import Component
from suite.tape import FP32, Backend

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case


class Style(StrEnum):
    """What tensor parallelism does to a module."""

    COLUMNS = "columns"  # output features are divided
    ROWS = "rows"  # input features are divided, results summed
    VOCABULARY_ROWS = "vocabulary rows"  # rows of the embedding are divided, results summed
    OWN_POSITIONS = "own positions"  # whole, looked up for the rank's part of the sequence
    ENTER_BEFORE = "enter before"  # its input is gathered for the columns within
    ENTER_AFTER = "enter after"  # its output is gathered for the columns that come next


def tensor_plan(ledger: Ledger) -> dict[str, Style]:
    """What is done to which modules, by the pattern of their names in the whole model.

    A weight's split gives its module's style. What columns read has to be whole: where several share an input, the
    module around them gathers it once; the head has none around it, and the norm before it gathers its output.
    """
    plan: dict[str, Style] = {}
    for placed in ledger.segments:
        for operator in placed.segment.operators():
            if operator.weights:
                weight = operator.weights[0]
                pattern = _pattern(placed.weight_name(weight))
                plan |= _styles(pattern, operator, weight.split)
    return plan


def _styles(pattern: str, operator: Operator, split: Split) -> dict[str, Style]:
    """Styles that one operator's weight asks for."""
    around = pattern.rpartition(".")[0]
    is_lookup = operator.kind is OperatorKind.EMBEDDING
    match split:
        case Split.ROW:
            return {pattern: Style.ROWS}
        case Split.VOCAB if is_lookup:
            return {pattern: Style.VOCABULARY_ROWS}
        case Split.COLUMN | Split.VOCAB:
            return {around: Style.ENTER_BEFORE, pattern: Style.COLUMNS} if around else {pattern: Style.COLUMNS}
    if is_lookup:
        return {pattern: Style.OWN_POSITIONS}
    return {pattern: Style.ENTER_AFTER} if operator.kind is OperatorKind.NORM and not around else {}


def _pattern(weight: str) -> str:
    """The module of a weight, its block's number left open: blocks.3.mlp.up.weight -> blocks.*.mlp.up."""
    parts = weight.split(".")[:-1]
    return ".".join("*" if part.isdigit() else part for part in parts)


def plan_of(case: Case) -> dict[str, Style]:
    """The plan of a case's model: it depends on no workload, number format or device."""
    return tensor_plan(ledger_of(case.model, case.workload, Recompute(), FP32, Backend.CPU))


def apply(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Divide the model's weights over mesh["tp"] and put the collectives where the plan says. A pipeline's stage has
    some of the plan's modules; the rest of the plan is another stage's."""
    from torch.distributed.tensor.parallel import parallelize_module

    from parallelism.tensor_regions import Regions
    from parallelism.tensor_styles import STYLES
    from parallelism.vocab_loss import VocabularyCrossEntropy
    from suite.models.decoder_module import Decoder
    from suite.models.dropout import SequenceDropout

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
        if isinstance(module, SequenceDropout) and case.layout.sequence_parallel:
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
