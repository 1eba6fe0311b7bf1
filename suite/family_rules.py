"""What families of models cannot be combined with, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from suite.layout import RecomputeKind
from suite.layout_rules import Rule
from suite.spec import AttentionKernel, Precision

if TYPE_CHECKING:
    from suite.case import Case


def _family(case: Case) -> str:
    return f"model.family({case.model.family})"


FAMILY_RULES: tuple[Rule[Case], ...] = (
    Rule(
        "tensor parallelism of recurrent layers",
        "every token would wait for the ranks' parts of the state; use fsdp, zero or dp",
        lambda case: case.layout.tp > 1 and not case.model.has_attention,
        lambda case: f"layout.tp({case.layout.tp}) with {_family(case)}",
    ),
    Rule(
        "selective recomputation of recurrent layers",
        "there is no attention core to run again, and one kernel holds all of a layer's products; use none or full",
        lambda case: (
            case.layout.recompute.kind in (RecomputeKind.SELECTIVE, RecomputeKind.SELECTIVE_OP)
            and not case.model.has_attention
        ),
        lambda case: f"layout.recompute({case.layout.recompute}) with {_family(case)}",
    ),
    Rule(
        "an attention kernel of recurrent layers",
        "they have no attention; leave it at flash, which then says nothing",
        lambda case: case.workload.attention is not AttentionKernel.FLASH and not case.model.has_attention,
        lambda case: f"workload.attention({case.workload.attention}) with {_family(case)}",
    ),
    Rule(
        "fp8 in recurrent layers",
        "torchao casts linear layers alone, which a recurrence is not; use bf16-mixed",
        lambda case: case.workload.precision in (Precision.FP8, Precision.FP8_ROWWISE) and not case.model.has_attention,
        lambda case: f"workload.precision({case.workload.precision}) with {_family(case)}",
    ),
)
