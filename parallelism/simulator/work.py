"""What an operator's kernels do, in FLOPs and bytes: forward, both halves of backward, and what is run again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from suite.float8 import FP8_LINEAR
from suite.hardware.matrix_rate import equivalent_side
from suite.operators import TO_LOCAL, Array, DType, Kernel, Operator, OperatorKind, Region, Weight


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product, (m, k) by (k, n), `batch` times."""

    m: int
    n: int
    k: int
    dtype: DType
    batch: float = 1.0

    @property
    def flops(self) -> float:
        """A multiply-add counts as two."""
        return 2.0 * self.batch * self.m * self.n * self.k

    @property
    def side(self) -> float:
        """Of the square product that does as many FLOPs for each number it touches."""
        return equivalent_side(self.m, self.n, self.k)


@dataclass(frozen=True, slots=True)
class Attention:
    """A fused attention kernel: FLOPs that it really does, tokens of the sequence that its queries belong to."""

    flops: float
    tokens: int
    dtype: DType


@dataclass(frozen=True, slots=True)
class Moved:
    """A kernel that does little arithmetic: bytes that it reads and writes."""

    nbytes: float


Work = Product | Attention | Moved


@dataclass(frozen=True)
class SegmentWork:
    """What a segment runs for one micro-batch. `inputs` and `weights` are the halves of its backward pass, `rerun` what
    checkpointing runs again before it."""

    forward: tuple[Work, ...]
    inputs: tuple[Work, ...]
    weights: tuple[Work, ...]
    rerun: tuple[Work, ...] = ()


#: no work on the device: names that are dropped or given, and waiting for what a link brings
SILENT = frozenset(
    {
        "release", "rebind", TO_LOCAL, "receive", "wait", "pass on sums", "sums have left", "sums are home",
        "all_to_all",
    }
)  # fmt: skip
#: collectives; beside them torch copies what their scratch holds, where several sequences must be put in order
COLLECTIVES = frozenset({"gather_sequence", "scatter_sequence"})
FUSED_ATTENTION = frozenset({"flash_attention", "ring attention"})
#: a fused attention's backward makes five products where its forward makes two (arXiv:2205.14135, algorithm 4)
ATTENTION_BACKWARD = 2.5
#: width of a head where a product's arrays do not tell it
USUAL_HEAD = 64


def parts_of(body: Iterable[Operator | Region]) -> Iterator[tuple[Operator, Kernel]]:
    """Every kernel with its operator, those of regions included, in forward order."""
    for item in body:
        if isinstance(item, Region):
            yield from parts_of(item.body)
        else:
            for kernel in item.kernels:
                yield item, kernel


def rerun_parts(region: Region) -> list[tuple[Operator, Kernel]]:
    """What is run again for a region's backward: its kernels up to the last that keeps something, without those whose
    outputs are held.

    The last is not run where all that it keeps is there before it (torch/utils/checkpoint.py, early_stop).
    """
    parts = list(parts_of(region.body))
    ends = max((place for place, (_, kernel) in enumerate(parts) if kernel.saves), default=-1)
    if ends < 0:
        return []
    there = {*region.inputs, *(array for _, kernel in parts[:ends] for array in kernel.writes)}
    stop = ends if all(array in there for array in parts[ends][1].saves) else ends + 1
    return [part for part in parts[:stop] if not any(array in region.kept for array in part[1].writes)]


def regions_of(body: Iterable[Operator | Region]) -> Iterator[Region]:
    """The regions that are rerun, outermost ones."""
    return (item for item in body if isinstance(item, Region))


# --- one kernel -----------------------------------------------------------------------------------------------------


def is_arithmetic(kernel: Kernel) -> bool:
    """Is it bound by arithmetic: a matrix product, or attention?"""
    return kernel.name in ("linear", "bmm", FP8_LINEAR) or kernel.name in FUSED_ATTENTION


def forward_work(operator: Operator, kernel: Kernel) -> Iterator[Work]:
    """A kernel's forward pass. Counted: products by shape, attention without what is masked, bytes of the rest."""
    if kernel.name in SILENT or kernel.is_view:
        return
    if kernel.name == "linear":
        m, n, k = _linear_sizes(kernel)
        yield Product(m, n, k, kernel.writes[0].dtype)
    elif kernel.name == FP8_LINEAR:
        yield from _float8_forward(kernel)
    elif kernel.name == "bmm":
        yield _batched(operator, kernel)
    elif kernel.name in FUSED_ATTENTION:
        yield _attention(operator, kernel, 1.0)
    else:
        yield Moved(_forward_bytes(kernel))


def backward_work(operator: Operator, kernel: Kernel) -> tuple[list[Work], list[Work]]:
    """A kernel's backward pass: what makes gradients of its inputs, and what makes those of matrices."""
    if kernel.derivative is not None:
        return [work for part in kernel.derivative.kernels for work in _derivative_work(operator, part)], []
    if kernel.name == "linear":
        m, n, k = _linear_sizes(kernel)
        dtype = kernel.writes[0].dtype
        bias: list[Work] = [Moved(kernel.writes[0].nbytes)] if len(kernel.gradients) > 2 else []
        return [Product(m, k, n, dtype)], [Product(n, k, m, dtype), *bias]
    if kernel.name == FP8_LINEAR:
        return _float8_backward(kernel)
    if kernel.name == "bmm":
        return [_batched(operator, kernel)] * 2, []
    if kernel.name in FUSED_ATTENTION:
        return [_attention(operator, kernel, ATTENTION_BACKWARD)], []
    nbytes = _backward_bytes(kernel)
    return ([Moved(nbytes)] if nbytes else []), []


def _derivative_work(operator: Operator, kernel: Kernel) -> Iterator[Work]:
    for work in forward_work(operator, kernel):
        yield _attention(operator, kernel, ATTENTION_BACKWARD) if isinstance(work, Attention) else work


def _linear_sizes(kernel: Kernel) -> tuple[int, int, int]:
    """Tokens, outputs, inputs."""
    x, weight = kernel.reads[:2]
    n, k = weight.values
    return x.elements // k, n, k


def _attention(operator: Operator, kernel: Kernel, factor: float) -> Attention:
    """A ring's products share its FLOPs evenly: each rank's are alike in sum, not one by one."""
    same = sum(item.name == kernel.name for item in operator.kernels)
    if kernel not in operator.kernels:  # of a derivative
        same = sum(
            other.name == kernel.name
            for item in operator.kernels
            if item.derivative
            for other in item.derivative.kernels
        )
    first = (kernel.reads or kernel.writes)[0]
    return Attention(factor * operator.flops.forward_only(causal=True) / same, first.shape[1].value, first.dtype)


def _batched(operator: Operator, kernel: Kernel) -> Product:
    """A product for each head, of an operator that computes scores in the open; no masked part is skipped."""
    arrays = (*kernel.reads, *kernel.writes)
    square = next((array for array in arrays if len(array.shape) == 4), None)
    flat = next((array for array in arrays if len(array.shape) == 3), None)
    if square is None:
        rows = columns = arrays[0].shape[1].value
        width = USUAL_HEAD
    else:
        _, heads, rows, columns = square.values
        width = flat.values[2] // heads if flat is not None else USUAL_HEAD
    count = max(1, sum(item.name == kernel.name for item in operator.kernels))
    size = Product(rows, columns, max(1, width), arrays[0].dtype)
    return Product(rows, columns, max(1, width), size.dtype, operator.flops.forward / count / size.flops)


# --- fp8 ------------------------------------------------------------------------------------------------------------


def _float8_forward(kernel: Kernel) -> Iterator[Work]:
    """The largest element of input and weight, their casts, and the product."""
    m, n, k = _linear_sizes(kernel)
    yield from _float8_casts(m * k, n * k)
    yield Product(m, n, k, DType.FP8)


def _float8_backward(kernel: Kernel) -> tuple[list[Work], list[Work]]:
    """The gradient cast for each of the two products, weight and input cast once more."""
    m, n, k = _linear_sizes(kernel)
    inputs: list[Work] = [*_float8_casts(m * n, n * k), Product(m, k, n, DType.FP8)]
    return inputs, [*_float8_casts(m * n, m * k), Product(n, k, m, DType.FP8)]


def _float8_casts(*elements: int) -> list[Work]:
    """Each: read for its scale, read again and written in fp8 (torchao's dynamic scaling)."""
    wide, narrow = DType.BF16.nbytes, DType.FP8.nbytes
    return [Moved(count * nbytes) for count in elements for nbytes in (wide, wide + narrow)]


# --- bytes ----------------------------------------------------------------------------------------------------------


def _bytes(arrays: Iterable[Array]) -> int:
    return sum(array.nbytes for array in arrays)


def _forward_bytes(kernel: Kernel) -> int:
    """What is read and written. A look-up reads the rows that it writes; what names no reads or writes works in
    place."""
    reads, writes = _bytes(kernel.reads), _bytes(kernel.writes)
    if kernel.name in COLLECTIVES:
        return 2 * kernel.forward_scratch
    if kernel.name == "embedding":
        return 2 * writes
    if kernel.name == "nll_loss":
        return _bytes(array for array in kernel.reads if array.dtype is DType.INT64)
    if kernel.name in ("arange", "mask", "draw"):
        return writes + kernel.forward_scratch
    if not kernel.reads or not kernel.writes:
        return 2 * (reads + writes)
    return reads + writes


def _backward_bytes(kernel: Kernel) -> int:
    """The output's gradient and what was kept are read, gradients are written."""
    if kernel.name in COLLECTIVES:
        return 2 * kernel.backward_scratch
    if not kernel.gradients or kernel.name in SILENT or kernel.name == "sum_backward":
        return 0
    made = _bytes(kernel.gradients)
    if kernel.name == "nll_loss":
        return made
    if kernel.name == "embedding":
        return made + 3 * _bytes(kernel.writes)
    return _bytes(kernel.writes[:1]) + _bytes(kernel.saves) + made


def sums_of_gradients(parts: Sequence[tuple[Operator, Kernel]]) -> list[Work]:
    """Where several readers make gradients of one array: each but the first is added."""
    counts = Counter(
        array
        for _, kernel in parts
        if kernel.name not in SILENT
        for array in (*kernel.gradients, *kernel.passes)
        if not isinstance(array, Weight)
    )
    return [Moved(3 * array.nbytes) for array, count in counts.items() for _ in range(count - 1)]


def eager_work(body: Sequence[Operator | Region]) -> SegmentWork:
    """Every kernel by itself, as torch runs a model that is not compiled."""
    parts = list(parts_of(body))
    forward = [work for part in parts for work in forward_work(*part)]
    inputs: list[Work] = []
    weights: list[Work] = []
    for part in reversed(parts):
        own, matrices = backward_work(*part)
        inputs += own
        weights += matrices
    inputs += sums_of_gradients(parts)
    again = [work for region in regions_of(body) for part in rerun_parts(region) for work in forward_work(*part)]
    return SegmentWork(tuple(forward), tuple(inputs), tuple(weights), tuple(again))


def is_loss(operator: Operator) -> bool:
    """Is it the loss?"""
    return operator.kind is OperatorKind.LOSS
