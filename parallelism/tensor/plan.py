"""The tensor-parallel plan: what is done to which modules, read off the operator ledger."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from suite.layout import Recompute
from suite.models.ledgers import ledger_of
from suite.operators import Ledger, Operator, OperatorKind, Split
from suite.tape import FP32, Backend

if TYPE_CHECKING:
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
