"""A linear layer in fp8 as torchao trains it: cast from bf16 before each product, and nothing in fp8 kept.

An estimate: nothing here has been held to a measurement yet.
"""

from __future__ import annotations

from enum import StrEnum

from suite.operators import Array, DType, Kernel, Weight

SOURCE = "torchao/float8/float8_linear.py, matmul_with_hp_or_float8_args"
FP8_LINEAR = f"fp8 linear ({SOURCE})"


class Scaling(StrEnum):
    """How many elements share a scale, found anew at every cast (torchao's dynamic scaling)."""

    TENSORWISE = "tensorwise"
    ROWWISE = "rowwise"


def float8_kernels(x: Array, weights: tuple[Weight, ...], y: Array, scaling: Scaling) -> list[Kernel]:
    """y [M, N] = x [M, K] W^T (+ b), x and y in bf16. Keeps x as it is.

    Counted, an element a byte: forward, casts of x and W. Backward, the gradient cast twice and W and x once more, all
    held until both gradients are there, beside the other layout that _scaled_mm wants of the gradient and of x
    (float8_ops.py, preprocess_addmm); rowwise, an fp32 scale a row of each. Where W is fp32 its gradient is made in
    bf16 and cast after. A bias is added to the product. Not counted: tensorwise scales, which are scalars, and what
    eager casts pass through in fp32: torchao means its casts to be compiled.
    Source: torchao/float8/float8_linear.py, matmul_with_hp_or_float8_args and Float8Linear.forward.
    """
    weight = weights[0]
    n, k = (size.value for size in weight.shape)
    m = x.elements // k
    is_rowwise = scaling is Scaling.ROWWISE
    scales = DType.FP32.nbytes * (m + n) if is_rowwise else 0
    scales_back = DType.FP32.nbytes * (m + n + 2 * k) if is_rowwise else 0
    back = DType.FP8.nbytes * (3 * m * n + 2 * m * k + n * k) + scales_back
    if weight.dtype is not y.dtype:
        made = y.dtype.nbytes * n * k
        back = max(back - (weight.nbytes - made), made)
    product = Array(f"{y.name}, before the bias", y.shape, y.dtype) if weights[1:] else y
    kernels = [
        Kernel(
            FP8_LINEAR, (x, weight), (product,), (x,), (weight, x), through_view=True,
            forward_scratch=DType.FP8.nbytes * (m * k + n * k) + scales, backward_scratch=back,
        )
    ]  # fmt: skip
    if weights[1:]:
        kernels.append(Kernel("add", (product, *weights[1:]), (y,), passes=(product,), gradients=weights[1:]))
    return kernels
