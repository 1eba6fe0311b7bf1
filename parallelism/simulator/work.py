"""What an operator's kernels do, in FLOPs and bytes: forward, both halves of backward, and what is run again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from parallelism.simulator.float8_work import backward_casts, forward_casts, linear_sizes
from parallelism.simulator.recurrent_work import recurrence_of
from suite.float8 import FP8_LINEAR
from suite.hardware.matrix_rate import equivalent_side
from suite.models.recurrence_ledger import RECURRENCE
from suite.operators import TO_LOCAL, Array, DType, Kernel, Operator, Region, Weight


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
    """A fused attention kernel: FLOPs that it really does, tokens of the sequence of its queries, width of a
    head."""

    flops: float
    tokens: int
    dtype: DType
    width: int = 128


@dataclass(frozen=True, slots=True)
class Moved:
    """A kernel that does little arithmetic: bytes that it reads and writes."""

    nbytes: float


@dataclass(frozen=True, slots=True)
class Repeated:
    """Kernels that run `times` over, one after the other."""

    kernels: tuple[Product | Moved, ...]
    times: int


Work = Product | Attention | Moved | Repeated


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
#: torch's own norms read a row for its moments and again to scale it; backward likewise, and a second kernel reads
#: gradient and input for the weights (aten/src/ATen/native/cuda/layer_norm_kernel.cu, GammaBetaBackward...)
NORMS = frozenset({"layer_norm", "rms_norm", "batch_norm"})
#: torch's log-softmax reads a long row for its largest element, for its sum, and to write; backward the gradient for
#: its sum, and again (aten/src/ATen/native/cuda/SoftMax.cu, cunn_SoftMaxForward and Backward)
SOFTMAXES = frozenset({"log_softmax", "softmax"})
#: one launch for the products of all experts (torch.nn.functional.grouped_mm)
GROUPED = "grouped_mm"
#: width of a head where a product's arrays do not tell it
USUAL_HEAD = 128


def parts_of(body: Iterable[Operator | Region]) -> Iterator[tuple[Operator, Kernel]]:
    """Every kernel with its operator, those of regions included, in forward order."""
    for item in body:
        if isinstance(item, Region):
            yield from parts_of(item.body)
        else:
            for kernel in item.kernels:
                yield item, kernel


def rerun_parts(region: Region, stops_early: bool = True) -> list[tuple[Operator, Kernel]]:
    """What is run again for a region's backward: its kernels up to the last that keeps something, or all of them;
    without those whose outputs are held.

    The last is not run where all that it keeps is there before it (torch/utils/checkpoint.py, early_stop).
    """
    parts = list(parts_of(region.body))
    if not stops_early:
        return [part for part in parts if not any(array in region.kept for array in part[1].writes)]
    ends = max((place for place, (_, kernel) in enumerate(parts) if kernel.saves), default=-1)
    if ends < 0:
        return []
    there = {*region.inputs, *(array for _, kernel in parts[:ends] for array in kernel.writes)}
    last = parts[ends][1]
    stop = ends + (last.saves_last or any(array not in there for array in last.saves))
    return [part for part in parts[:stop] if not any(array in region.kept for array in part[1].writes)]


def regions_of(body: Iterable[Operator | Region]) -> Iterator[Region]:
    """The regions that are rerun, outermost ones."""
    return (item for item in body if isinstance(item, Region))


# --- one kernel -----------------------------------------------------------------------------------------------------


def is_arithmetic(kernel: Kernel) -> bool:
    """Is it bound by arithmetic: a matrix product, or attention?"""
    return kernel.name in ("linear", "bmm", GROUPED, FP8_LINEAR, RECURRENCE) or kernel.name in FUSED_ATTENTION


def forward_work(operator: Operator, kernel: Kernel) -> Iterator[Work]:
    """A kernel's forward pass. Counted: products by shape, attention without what is masked, bytes of the rest."""
    if kernel.name in SILENT or kernel.is_view:
        return
    if kernel.name == "linear":
        m, n, k = linear_sizes(kernel)
        yield Product(m, n, k, kernel.writes[0].dtype)
    elif kernel.name == FP8_LINEAR:
        yield from float8_forward(kernel)
    elif kernel.name == "bmm":
        yield _batched(operator, kernel)
    elif kernel.name == GROUPED:
        yield grouped_products(kernel)[0]
    elif kernel.name in FUSED_ATTENTION:
        yield _attention(operator, kernel, 1.0)
    elif kernel.name == RECURRENCE:
        yield from _recurrent_forward(kernel)
    else:
        yield Moved(_forward_bytes(kernel))


def backward_work(operator: Operator, kernel: Kernel) -> tuple[list[Work], list[Work]]:
    """A kernel's backward pass: what makes gradients of its inputs, and what makes those of matrices."""
    if kernel.derivative is not None:
        return [work for part in kernel.derivative.kernels for work in _derivative_work(operator, part)], []
    if not kernel.gradients and kernel.name not in COLLECTIVES:
        return [], []
    if kernel.name == "linear":
        m, n, k = linear_sizes(kernel)
        dtype = kernel.writes[0].dtype
        bias: list[Work] = [Moved(kernel.writes[0].nbytes)] if len(kernel.gradients) > 2 else []
        return [Product(m, k, n, dtype)], [Product(n, k, m, dtype), *bias]
    if kernel.name == FP8_LINEAR:
        return float8_backward(kernel)
    if kernel.name == "bmm":
        return [_batched(operator, kernel)] * 2, []
    if kernel.name == GROUPED:
        return [grouped_products(kernel)[1]], [grouped_products(kernel)[2]]
    if kernel.name in FUSED_ATTENTION:
        return [_attention(operator, kernel, ATTENTION_BACKWARD)], []
    if kernel.name == RECURRENCE:
        return _recurrent_backward(kernel)
    nbytes = _backward_bytes(kernel)
    return ([Moved(nbytes)] if nbytes else []), []


def _derivative_work(operator: Operator, kernel: Kernel) -> Iterator[Work]:
    for work in forward_work(operator, kernel):
        yield _attention(operator, kernel, ATTENTION_BACKWARD) if isinstance(work, Attention) else work


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
    first, sums = (kernel.reads or kernel.writes)[0], kernel.writes[1]
    width = first.values[2] // sums.values[1] if sums.dtype is DType.FP32 else USUAL_HEAD
    flops = factor * operator.flops.forward_only(causal=True) / same
    return Attention(flops, first.shape[1].value, first.dtype, width)


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


def _recurrent_forward(kernel: Kernel) -> Iterator[Work]:
    """All tokens' inputs at once, then one token after the other."""
    size = recurrence_of(kernel)
    yield Product(size.batch * size.tokens, size.rows, size.inputs, size.dtype)
    state = Product(size.batch, size.rows, size.width, size.dtype)
    yield Repeated((state, *map(Moved, size.forward_moves)), size.tokens)


def _recurrent_backward(kernel: Kernel) -> tuple[list[Work], list[Work]]:
    """One token after the other, then products over all of them; biases' sums, and the outputs one token on."""
    size = recurrence_of(kernel)
    tokens = size.batch * size.tokens
    state = Product(size.batch, size.width, size.rows, size.dtype)
    steps = Repeated((state, *map(Moved, size.backward_moves)), size.tokens)
    matrices = [Product(size.rows, width, tokens, size.dtype) for width in (size.inputs, size.width)]
    moved = [Moved(nbytes) for nbytes in (size.gate_bytes, size.gate_bytes, 2 * size.output_bytes)]
    return [steps, Product(tokens, size.inputs, size.rows, size.dtype)], [*matrices, *moved]


def grouped_products(kernel: Kernel) -> tuple[Product, Product, Product]:
    """Forward, the input's gradient and the weights' of experts' products, rows spread evenly: one product an expert,
    as fast as its own rows make it. Of fewer rows than experts, so many experts have one row each; FLOPs are exact."""
    x, weight = kernel.reads[:2]
    experts, n, k = weight.values
    rows = x.elements // k
    used = min(experts, rows)
    m, dtype = max(1, round(rows / used)), kernel.writes[0].dtype
    batch = rows / m
    return Product(m, n, k, dtype, batch), Product(m, k, n, dtype, batch), Product(n, k, m, dtype, batch)


# --- fp8 ------------------------------------------------------------------------------------------------------------


def float8_forward(kernel: Kernel, is_compiled: bool = False, is_input_cast: bool = False) -> Iterator[Work]:
    """Casts, and the product."""
    m, n, k = linear_sizes(kernel)
    yield from map(Moved, forward_casts(kernel, is_compiled, is_input_cast))
    yield Product(m, n, k, DType.FP8)


def float8_backward(
    kernel: Kernel, is_compiled: bool = False, is_input_cast: bool = False
) -> tuple[list[Work], list[Work]]:
    """Casts and product of the input's gradient, and of the weight's."""
    m, n, k = linear_sizes(kernel)
    first, second = backward_casts(kernel, is_compiled, is_input_cast)
    return [*map(Moved, first), Product(m, k, n, DType.FP8)], [*map(Moved, second), Product(n, k, m, DType.FP8)]


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
    if kernel.name in NORMS:
        return 2 * reads + writes
    return (3 * reads if kernel.name in SOFTMAXES else reads) + writes


def _backward_bytes(kernel: Kernel) -> int:
    """The output's gradient and what was kept are read, gradients written; what is made in passing both."""
    if kernel.name in COLLECTIVES:
        return 2 * kernel.backward_scratch
    if kernel.name in SILENT or kernel.name == "sum_backward":
        return 0
    made = _bytes(kernel.gradients)
    if kernel.name == "nll_loss":
        return made
    if kernel.name == "embedding":
        return made + 3 * _bytes(kernel.writes)
    arriving, kept = _bytes(kernel.writes[:1]), _bytes(kernel.saves)
    if kernel.name in NORMS:
        return 3 * (arriving + kept) + made
    passing = 2 * kernel.backward_scratch  # written and read
    return (2 * arriving if kernel.name in SOFTMAXES else arriving) + kept + made + passing


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


def eager_work(body: Sequence[Operator | Region], stops_early: bool = True) -> SegmentWork:
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
    again = [
        work for region in regions_of(body) for part in rerun_parts(region, stops_early) for work in forward_work(*part)
    ]
    return SegmentWork(tuple(forward), tuple(inputs), tuple(weights), tuple(again))
