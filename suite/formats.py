"""Number formats of a case: what parameters, gradients, optimizer state, residual stream and products are in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from suite.layout import Layout, ReduceType
from suite.operators import DType
from suite.spec import Precision
from suite.tape import Numerics

if TYPE_CHECKING:
    from suite.case import Case

#: what matrix products run in
COMPUTE = {
    Precision.FP32: DType.FP32,
    Precision.BF16: DType.BF16,
    Precision.BF16_MIXED: DType.BF16,
    Precision.FP16_MIXED: DType.FP16,
}
#: one format for everything: no master, no cast
UNIFORM = frozenset({Precision.FP32, Precision.BF16})
REDUCED = {ReduceType.FP32: DType.FP32, ReduceType.BF16: DType.BF16}


@dataclass(frozen=True)
class Formats:
    """What a rank keeps between steps, and in what it computes (`numerics`).

    Mixed precision keeps fp32 and casts: under autocast operator by operator, under FSDP2's policy a unit's parameters
    as they are gathered (torch.distributed.fsdp.MixedPrecisionPolicy). DeepSpeed keeps parameters and gradients in the
    compute type, and fp32 masters with the optimizer's state (deepspeed/runtime/zero).
    """

    parameters: DType
    gradients: DType
    """those that the optimizer reads"""
    optimizer: DType
    """its moments; a step counter is fp32 in every precision"""
    reduced: DType
    """gradients while FSDP2 reduces them"""
    numerics: Numerics


def formats_of(case: Case) -> Formats:
    """The formats of a case."""
    return formats(case.workload.precision, case.layout)


@cache
def formats(precision: Precision, layout: Layout) -> Formats:
    """The formats of a precision under a layout."""
    compute, fp32 = COMPUTE[precision], DType.FP32
    reduced = fp32 if precision is Precision.FP32 else REDUCED[layout.reduce_type]
    policy = Numerics(compute, compute, compute, autocast=False)
    if precision in UNIFORM:
        return Formats(compute, compute, compute, reduced, policy)
    if layout.is_deepspeed:
        return Formats(compute, compute, fp32, compute, policy)
    if layout.fsdp > 1:
        return Formats(fp32, fp32, fp32, reduced, policy)
    return Formats(fp32, fp32, fp32, fp32, Numerics(fp32, fp32, compute, autocast=True))
