"""The casts around fp8 products: what finding a scale and casting reads and writes, in eager torch and compiled."""

from __future__ import annotations

from collections.abc import Iterable

from suite.float8 import FP8_LINEAR, Scaling
from suite.operators import DType, Kernel

_WIDE, _NARROW = DType.BF16.nbytes, DType.FP8.nbytes


def scaling_of(kernel: Kernel) -> Scaling:
    """Rowwise scales are arrays beside what is cast; a tensor's is a scalar, which the ledger does not count."""
    m, n, k = linear_sizes(kernel)
    return Scaling.ROWWISE if kernel.forward_scratch > m * k + n * k else Scaling.TENSORWISE


def linear_sizes(kernel: Kernel) -> tuple[int, int, int]:
    """Tokens, outputs, inputs of a linear layer."""
    x, weight = kernel.reads[:2]
    n, k = weight.values
    return x.elements // k, n, k


def forward_casts(kernel: Kernel, is_compiled: bool, is_input_cast: bool) -> list[int]:
    """Bytes of each cast before the product: of the input, unless another layer has cast it, and of the weight."""
    m, n, k = linear_sizes(kernel)
    own = [] if is_input_cast else casts(m * k, finds_scale=not is_compiled)
    return [*own, *_weight_casts(kernel, n * k)]


def backward_casts(kernel: Kernel, is_compiled: bool, is_input_cast: bool) -> tuple[list[int], list[int]]:
    """The same for the products that make the input's and the weight's gradients: the arriving gradient and weight, the
    gradient again in the other layout and input. Rowwise, the other layout has scales of its own."""
    m, n, k = linear_sizes(kernel)
    is_rowwise = scaling_of(kernel) is Scaling.ROWWISE
    own = [] if is_input_cast else casts(m * k, finds_scale=not is_compiled or is_rowwise)
    again = casts(m * n) if is_rowwise or not is_compiled else [2 * _NARROW * m * n]
    return [*casts(m * n), *_weight_casts(kernel, n * k)], [*again, *own]


def casts(elements: int, finds_scale: bool = True) -> list[int]:
    """Read for the scale, read again and written in fp8. A compiler finds the scale where the tensor is made."""
    return [*([_WIDE * elements] if finds_scale else []), (_WIDE + _NARROW) * elements]


def _weight_casts(kernel: Kernel, elements: int) -> list[int]:
    """With a scale a tensor weights are gathered in fp8, cast by those who hold the shards."""
    return casts(elements) if scaling_of(kernel) is Scaling.ROWWISE else []


def in_float8(kernels: Iterable[Kernel], scaling: Scaling) -> Iterable[Kernel]:
    """Kernels of an operator, its product in fp8."""
    for kernel in kernels:
        if kernel.name != "linear":
            yield kernel
            continue
        m, n, k = linear_sizes(kernel)
        scales = DType.FP32.nbytes * (m + n) if scaling is Scaling.ROWWISE else 0
        yield Kernel(
            FP8_LINEAR, kernel.reads, kernel.writes, kernel.saves, kernel.gradients, kernel.passes,
            forward_scratch=m * k + n * k + scales, through_view=True,
        )  # fmt: skip
