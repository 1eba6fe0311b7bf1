"""Is a run the single process's run? What is compared in each number format, and how close is close enough.

fp64   1e-10, everything. Layouts differ in the order of sums alone, and in fp64 that is 1e-13 after three AdamW
       steps: what is left is a mistake.
fp32   1e-5, everything; under AdamW without the last parameters, where an element whose gradient is all rounding
       takes a whole step in the direction that rounding picked (fp64 shows that the rest is right).
bf16, fp16   losses, and the first gradients as one vector, within what R roundings in series leave (see below).
"""

from __future__ import annotations

from math import log, sqrt

from suite.case import Case
from suite.formats import formats_of
from suite.models.decoder import DecoderSpec, Mixing, Position
from suite.operators import DType
from suite.spec import OptimizerKind
from tests.distributed.differences import gaps, overall_gap, same_tensors
from tests.distributed.traces import Trace

FP64_TOLERANCE, FP32_TOLERANCE = 1e-10, 1e-5

#: eight significant bits, or eleven, rounded to nearest
ROUNDOFF = {DType.BF16: 2**-8, DType.FP16: 2**-11}
INIT_STD = 0.02
#: tensors of a block that stand in line from its input to its output, each rounded: norm, query, scores' sum,
#: output, residual; norm, up, activation, down, residual. After the blocks: norm, logits; before: the embedding.
ROUNDINGS_A_BLOCK, OTHER_ROUNDINGS = 10, 3
DEVIATIONS = 4


def differences(trace: Trace, reference: Trace, case: Case, is_double: bool = False) -> list[str]:
    """What is further apart than it may be, the largest first: one line each, such as
    `gradient of step 0, head.weight: 5.0e-01`. Empty: the two are one run."""
    built = list(trace.strayed)
    if not same_tensors(trace.start, reference.start):
        built.append("first parameters: not the same bits")
    if formats_of(case).numerics.compute in ROUNDOFF:
        return built + _rounded_differences(trace, reference, case)
    tolerance = FP64_TOLERANCE if is_double else FP32_TOLERANCE
    left_out = "last parameter" if case.workload.optimizer is OptimizerKind.ADAMW and not is_double else None
    found = [
        (gap, what)
        for what, gap in gaps(trace, reference, sees_shifts(case))
        if not gap <= tolerance and not (left_out and what.startswith(left_out))
    ]
    return built + [f"{what}: {gap:.1e}" for gap, what in sorted(found, reverse=True)]


def sees_shifts(case: Case) -> bool:
    """Do rotated keys, or none in a softmax, tell a shift of all keys?"""
    model = case.model
    return not isinstance(model, DecoderSpec) or model.position is Position.ROPE or model.mixing is Mixing.LINEAR


def _rounded_differences(trace: Trace, reference: Trace, case: Case) -> list[str]:
    losses = [(gap, what) for what, gap in gaps(trace, reference) if what.startswith("loss")]
    found = [f"{what}: {gap:.1e}" for gap, what in sorted(losses, reverse=True) if not gap <= bf16_loss_tolerance(case)]
    gap = overall_gap(trace.gradients[0], reference.gradients[0])
    if not gap <= bf16_gradient_tolerance(case):
        found.append(f"gradient of step 0, as a whole: {gap:.1e}")
    return found


def bf16_loss_tolerance(case: Case) -> float:
    """Relative distance of two right losses in bf16 or fp16: four deviations of what rounding leaves.

    Roundings are independent, so R of them in line leave u sqrt(R) of a logit, and two runs are sqrt(2) times that
    apart. A fresh model's logits have a deviation of 0.02 sqrt(h) (a row of the embedding by a normed vector) and
    its loss is ln V; a token's loss moves as its logits do, and the mean over N tokens averages that out.
    """
    tokens = case.tokens_per_step
    logit = INIT_STD * sqrt(case.model.hidden)
    return DEVIATIONS * sqrt(2 * _roundings(case)) * _roundoff(case) * logit / sqrt(tokens) / log(case.model.vocab)


def bf16_gradient_tolerance(case: Case) -> float:
    """Relative Euclidean distance of two right gradients in bf16 or fp16: u sqrt(2R), R roundings each way."""
    return _roundoff(case) * sqrt(2 * _roundings(case))


def _roundoff(case: Case) -> float:
    return ROUNDOFF[formats_of(case).numerics.compute]


def _roundings(case: Case) -> int:
    return ROUNDINGS_A_BLOCK * case.model.layers + OTHER_ROUNDINGS
