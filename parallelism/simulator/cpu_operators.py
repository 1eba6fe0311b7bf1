"""Which timed operators a model's ledger comes to, one call each: what a calibration has to know of a case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from suite.case import Case
from suite.formats import formats_of
from suite.hardware.operator_times import Format, Timed
from suite.layout import RecomputeKind
from suite.models.base import ModelSpec
from suite.models.decoder import DecoderSpec, Mixing, Norm, Position
from suite.models.experts_sizes import sizes_of
from suite.models.recurrence_ledger import RECURRENCE
from suite.operators import Array, Kernel, Operator, OperatorKind, Weight
from suite.optimizers import kernel_of
from suite.parse import require
from suite.spec import OptimizerKernel, OptimizerKind


@dataclass(frozen=True, slots=True)
class Use:
    """One call of a timed operator."""

    operator: Timed
    shape: tuple[int, ...]


def format_of(case: Case) -> Format:
    """In what the case's operators compute."""
    numerics = formats_of(case).numerics
    suffix = "-autocast" if numerics.autocast else ""
    return Format(f"{numerics.compute.label}{suffix}")


def uses_of(case: Case, operators: Iterable[Operator]) -> Iterator[Use]:
    """The calls of a run of operators, in order, and where gradients of one tensor meet.

    Counted: every kernel of the ledger. Not counted: views and what Python's frames let go; attention over keys that
    are spread over ranks, which is timed as a whole (suite/hardware/overheads.py, ContextCore); the masks of an
    embedding that is divided over ranks.
    """
    operators = tuple(operators)
    mixture = _mixture(operators)
    others = tuple(operator for operator in operators if operator not in mixture)
    for operator in others:
        yield from _uses(case, operator)
    if mixture and case.model.experts is not None:
        batch, tokens, width = mixture[0].kernels[0].reads[0].values
        yield Use(Timed.MIXTURE, sizes_of(case.model.experts, batch, tokens, width))
    yield from _meetings(others)


_UPDATES = {
    (OptimizerKind.ADAMW, OptimizerKernel.FUSED): Timed.ADAMW,
    (OptimizerKind.ADAMW, OptimizerKernel.FOREACH): Timed.ADAMW_FOREACH,
    (OptimizerKind.ADAMW, OptimizerKernel.LOOP): Timed.ADAMW_LOOP,
    (OptimizerKind.SGD, OptimizerKernel.FUSED): Timed.SGD,
}


def untimed(case: Case) -> str:
    """What of the case has no measurement on the CPU: the field and what would do; empty where all has."""
    kind, kernel = case.workload.optimizer, kernel_of(case)
    if (kind, kernel) not in _UPDATES:
        return f"workload.optimizer: {kind} by {kernel} kernels is not timed on the CPU; adamw is"
    if case.model.dropout:
        return f"model.dropout: {case.model.dropout}: drawing masks is not timed on the CPU; 0 is"
    if case.model.latent is not None:
        return (
            f"model.latent: what {case.model.name} makes keys and values of is not timed on the CPU; models without are"
        )
    if reason := _untimed_experts(case):
        return reason
    if form := _untimed_form(case.model):
        return f"model.{form} of {case.model.name} is not timed on the CPU; softmax attention, rope or learned"
    if formats_of(case).numerics.scaling is not None:
        return f"workload.precision: {case.workload.precision} is not timed on the CPU; fp32, bf16 and mixed ones are"
    return ""


def _untimed_experts(case: Case) -> str:
    """What of a mixture of experts no calibration runs, which takes it whole and alone on its rank."""
    layout = case.layout
    if case.model.experts is None:
        return ""
    if layout.ep > 1:
        return f"layout.ep: {layout.ep}: exchanging experts' rows is not timed on the CPU; 1 is"
    if layout.tp > 1:
        return f"layout.tp: {layout.tp}: experts divided over ranks are not timed on the CPU; 1 is"
    if layout.recompute.kind is RecomputeKind.SELECTIVE_OP:
        return f"layout.recompute: {layout.recompute}: a part of a mixture run again is not timed on the CPU; full is"
    if isinstance(case.model, DecoderSpec) and case.model.mtp:
        return f"model.mtp: {case.model.mtp}: predicting further tokens is not timed on the CPU; 0 is"
    return ""


def _untimed_form(model: ModelSpec) -> str:
    """What of a decoder's form no calibration runs: the field and its value."""
    if not isinstance(model, DecoderSpec):
        return ""
    if model.mixing is Mixing.LINEAR:
        return f"mixing: {model.mixing}"
    if model.position in (Position.ALIBI, Position.SINUSOIDAL):
        return f"position: {model.position}"
    return f"norm: {model.norm}" if model.norm is Norm.BATCHNORM else ""


def optimizer_of(case: Case) -> Timed:
    """The update of one tensor. SpecError where the case is not timed."""
    reason = untimed(case)
    require(not reason, reason)
    return _UPDATES[case.workload.optimizer, kernel_of(case)]


#: the first and last operators of a mixture (suite/models/experts_ledger.py); what its frames let go comes after
MIXTURE_ENDS = ("mlp.tokens", "mlp.counted")


def _mixture(operators: tuple[Operator, ...]) -> tuple[Operator, ...]:
    """The operators of a block's mixture of experts, which is timed as a whole; none where it has none."""
    names = [operator.name for operator in operators]
    if MIXTURE_ENDS[0] not in names:
        return ()
    first, last = (names.index(name) for name in MIXTURE_ENDS)
    return operators[first : last + 1]


def _uses(case: Case, operator: Operator) -> Iterator[Use]:
    kernels = {kernel.name: kernel for kernel in operator.kernels}
    match operator.kind:
        case OperatorKind.MATMUL if RECURRENCE in kernels:
            yield from _recurrence(operator.kernels)
        case OperatorKind.MATMUL:
            yield from _linear(operator.kernels)
        case OperatorKind.ATTENTION:
            if case.layout.cp == 1:
                yield _attention(case, operator)
        case OperatorKind.NORM:
            is_layer = "layer_norm" in kernels
            yield Use(Timed.LAYER_NORM if is_layer else Timed.RMS_NORM, _rows(operator.kernels[0].reads[0]))
        case OperatorKind.EMBEDDING:
            yield from _embedding(kernels["embedding"])
        case OperatorKind.LOSS:
            yield _loss(kernels)
        case OperatorKind.POINTWISE:
            yield from _pointwise(case, kernels)


def _linear(kernels: Iterable[Kernel]) -> Iterator[Use]:
    for kernel in kernels:
        if kernel.name == "cast" and not kernel.is_weight_cast:
            yield Use(Timed.CAST, _rows(kernel.reads[0]))
        if kernel.name == "linear":
            x, weight, *bias = kernel.reads
            outputs, inputs = weight.values
            yield Use(Timed.LINEAR_BIAS if bias else Timed.LINEAR, (x.elements // inputs, inputs, outputs))


def _recurrence(kernels: Iterable[Kernel]) -> Iterator[Use]:
    """A whole layer over all its tokens, the copies of its weights included."""
    for kernel in kernels:
        if kernel.name == "cast" and not isinstance(kernel.reads[0], Weight):
            yield Use(Timed.CAST, _rows(kernel.reads[0]))
        if kernel.name == RECURRENCE:
            batch, tokens, width = kernel.writes[0].values
            yield Use(Timed.RECURRENCE, (kernel.writes[1].values[-1] // width, batch, tokens, width))


def _attention(case: Case, operator: Operator) -> Use:
    """The first two tensors of heads that it reads are queries and keys."""
    width = case.model.head_dim
    fused = operator.kernels[0].name == "flash_attention"
    q = operator.kernels[0].reads[0].values
    k = next(kernel for kernel in operator.kernels if kernel.name in ("flash_attention", "bmm")).reads[1].values
    is_causal = operator.flops.causal_saving > 0
    timed = (Timed.FLASH if is_causal else Timed.PADDED_FLASH) if fused else Timed.EAGER
    return Use(timed, (q[0], q[1], q[-1] // width, k[-1] // width, width))


def _embedding(kernel: Kernel) -> Iterator[Use]:
    ids, table = kernel.reads
    if len(ids.shape) > 1:
        yield Use(Timed.EMBEDDING, (*ids.values, *table.values))


def _loss(kernels: dict[str, Kernel]) -> Use:
    """A loss that is divided over ranks is taken for a whole one over as many columns; its sums are messages."""
    kernel = kernels.get("log_softmax") or kernels["vocabulary_cross_entropy"]
    return Use(Timed.CROSS_ENTROPY, _rows(kernel.reads[0]))


def _pointwise(case: Case, kernels: dict[str, Kernel]) -> Iterator[Use]:
    if "cast" in kernels:
        yield Use(Timed.CAST, _rows(kernels["cast"].reads[0]))
    if "cat" in kernels:
        y = kernels["cat"].writes[0]
        sequences, tokens, channels = y.values
        width = case.model.head_dim
        yield Use(Timed.ROTARY, (sequences, tokens, channels // width, case.decoder.rotary_dim, width))
    elif "gelu" in kernels:
        yield Use(Timed.GELU, _rows(kernels["gelu"].reads[0]))
    elif "mul" in kernels:  # beside the silu that made its first operand
        yield Use(Timed.SWIGLU, _rows(kernels["mul"].reads[0]))
    elif "add" in kernels:
        yield _add(case, kernels["add"])


def _add(case: Case, kernel: Kernel) -> Use:
    x, y = kernel.reads
    if 1 < len(y.shape) < len(x.shape):
        return Use(Timed.POSITIONS, (*x.values[:2], case.model.max_positions, x.values[-1]))
    return Use(Timed.ADD, _rows(x))


def _meetings(operators: tuple[Operator, ...]) -> Iterator[Use]:
    """Where several operators read a tensor, their gradients of it are added up one by one."""
    readers: Counter[Array] = Counter()
    for operator in operators:
        made = {array for kernel in operator.kernels for array in kernel.writes}
        given = {array for kernel in operator.kernels for array in (*kernel.gradients, *kernel.passes)}
        read = {array for kernel in operator.kernels for array in kernel.reads}
        readers.update((given & read) - made - set(operator.weights))
    for array, count in readers.items():
        yield from [Use(Timed.MEET, _rows(array))] * (count - 1)


def _rows(array: Array) -> tuple[int, int]:
    """Tokens and width of a tensor."""
    width = array.values[-1]
    return array.elements // width, width
