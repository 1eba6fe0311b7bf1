"""Number formats of a case: what parameters, gradients, optimizer state, residual stream and products are in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from suite.float8 import Scaling
from suite.layout import Layout, ReduceType
from suite.operators import DType
from suite.parse import require
from suite.spec import Precision
from suite.tape import Numerics

if TYPE_CHECKING:
    from suite.case import Case

#: what matrix products take and give
COMPUTE = {
    Precision.FP32: DType.FP32,
    Precision.BF16: DType.BF16,
    Precision.BF16_MIXED: DType.BF16,
    Precision.FP16_MIXED: DType.FP16,
    Precision.FP8: DType.BF16,
    Precision.FP8_ROWWISE: DType.BF16,
}
#: fp8 is a cast around the products of linear layers, which take and give bf16
SCALING = {Precision.FP8: Scaling.TENSORWISE, Precision.FP8_ROWWISE: Scaling.ROWWISE}
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


def check_trainable(case: Case) -> None:
    """Refuse what is estimated only."""
    precision = case.workload.precision
    require(
        precision not in SCALING,
        f"workload.precision: {precision} is not trained yet, since it needs torchao and a GPU that multiplies fp8;"
        " `estimate` takes it, and bf16-mixed can be trained",
    )


@cache
def formats(precision: Precision, layout: Layout) -> Formats:
    """The formats of a precision under a layout."""
    compute, fp32, scaling = COMPUTE[precision], DType.FP32, SCALING.get(precision)
    reduced = fp32 if precision is Precision.FP32 else REDUCED[layout.reduce_type]
    policy = Numerics(compute, compute, compute, False, scaling)
    if precision in UNIFORM:
        return Formats(compute, compute, compute, reduced, policy)
    if layout.is_deepspeed:
        return Formats(compute, compute, fp32, compute, policy)
    if layout.fsdp > 1:
        return Formats(fp32, fp32, fp32, reduced, policy)
    return Formats(fp32, fp32, fp32, fp32, Numerics(fp32, fp32, compute, True, scaling))
