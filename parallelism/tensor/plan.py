"""The tensor-parallel plan: what is done to which modules, read off the operator ledger."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from suite.layout import Recompute
from suite.models.ledgers import ledger_of
from suite.operators import Ledger, Operator, OperatorKind, Split, Weight
from suite.tape import FP32, Backend

if TYPE_CHECKING:
    from suite.case import Case

#: of stacked matrices, one an expert
EXPERTS_DIMS = 3


class Style(StrEnum):
    """What tensor parallelism does to a module."""

    COLUMNS = "columns"  # output features are divided
    ROWS = "rows"  # input features are divided, results summed
    VOCABULARY_ROWS = "vocabulary rows"  # rows of the embedding are divided, results summed
    OWN_POSITIONS = "own positions"  # whole, looked up for the rank's part of the sequence
    ENTER_BEFORE = "enter before"  # its input is gathered for the columns within
    ENTER_AFTER = "enter after"  # its output is gathered for the columns that come next
    AROUND = "around"  # its input is gathered, its output summed: what is divided within is not
    EXPERTS = "experts"  # every expert's width is divided
    OWN_ROWS = "own rows"  # input features are divided, results left for what is around to sum


def tensor_plan(ledger: Ledger) -> dict[str, Style]:
    """What is done to which modules, by the pattern of their names in the whole model.

    A weight's split gives its module's style. What columns read has to be whole: where several share an input, the
    module around them gathers it once; the head has none around it, and the norm before it gathers its output.
    """
    exact: dict[str, Style] = {}
    for placed in ledger.segments:
        for operator in placed.segment.operators():
            if operator.weights:
                weight = operator.weights[0]
                exact |= _styles(placed.weight_name(weight).rpartition(".")[0], operator, weight)
    return _by_pattern(_without_inner_sums(exact))


def _without_inner_sums(plan: dict[str, Style]) -> dict[str, Style]:
    """Within what is gathered and summed around, nothing is gathered or summed once more."""
    around = tuple(f"{name}." for name, style in plan.items() if style is Style.AROUND)
    kept = {}
    for name, style in plan.items():
        is_inner = name.startswith(around)
        if not (is_inner and style is Style.ENTER_BEFORE):
            kept[name] = Style.OWN_ROWS if is_inner and style is Style.ROWS else style
    return kept


def _by_pattern(plan: dict[str, Style]) -> dict[str, Style]:
    """Names with blocks' numbers left open, where all that are then alike have one style."""
    styles: dict[str, set[Style]] = {}
    for name, style in plan.items():
        styles.setdefault(_pattern(name), set()).add(style)
    return {pattern if len(styles[pattern := _pattern(name)]) == 1 else name: style for name, style in plan.items()}


def _styles(module: str, operator: Operator, weight: Weight) -> dict[str, Style]:
    """Styles that one operator's weight asks for, by the modules' names in the whole model."""
    around = module.rpartition(".")[0]
    is_lookup = operator.kind is OperatorKind.EMBEDDING
    if len(weight.shape) == EXPERTS_DIMS:
        return {around: Style.AROUND, module: Style.EXPERTS}
    match weight.split:
        case Split.ROW:
            return {module: Style.ROWS}
        case Split.VOCAB if is_lookup:
            return {module: Style.VOCABULARY_ROWS}
        case Split.COLUMN | Split.VOCAB:
            return {around: Style.ENTER_BEFORE, module: Style.COLUMNS} if around else {module: Style.COLUMNS}
    if is_lookup:
        return {module: Style.OWN_POSITIONS}
    return {module: Style.ENTER_AFTER} if operator.kind is OperatorKind.NORM and not around else {}


def _pattern(module: str) -> str:
    """A module's name with its block's number left open: blocks.3.mlp.up -> blocks.*.mlp.up."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))


def style_of(plan: dict[str, Style], module: str) -> Style | None:
    """What the plan does to the module of that name in the whole model, if anything."""
    return plan.get(module) or plan.get(_pattern(module))


def plan_of(case: Case) -> dict[str, Style]:
    """The plan of a case's model: it depends on no workload, number format or device."""
    return tensor_plan(ledger_of(case.model, case.workload, Recompute(), FP32, Backend.CPU))
