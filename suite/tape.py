"""A Tape writes a family's ledger down: one method an operator, each with the kernels torch runs for it.

What a kernel saves, allocates and returns is read off torch's own derivatives and CPU/CUDA sources (ATen,
tools/autograd/derivatives.yaml) and held to allocator traces in the tests. Only tensors are counted; the
few scalars of a loss are not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from suite.cpu_workspace import CpuWorkspace
from suite.float8 import Scaling, float8_kernels
from suite.operators import TO_LOCAL, Array, DType, Flops, Kernel, Operator, OperatorKind, Region, Size, Split, Weight
from suite.share import WHOLE, Share


class Backend(StrEnum):
    """Which kernels run."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class Numerics:
    """Number formats of a step. `autocast` casts at every matrix operator; else everything runs in `stream`."""

    weights: DType  # the type that operators read weights in before any cast
    stream: DType  # the residual stream
    compute: DType  # matrix work and attention
    autocast: bool
    scaling: Scaling | None = None  # of linear layers that are cast to fp8


FP32 = Numerics(DType.FP32, DType.FP32, DType.FP32, autocast=False)
BF16_AUTOCAST = Numerics(DType.FP32, DType.FP32, DType.BF16, autocast=True)
BF16_POLICY = Numerics(DType.BF16, DType.BF16, DType.BF16, autocast=False)

ONE = Size("1", 1)


class Tape:
    """Collects operators in execution order. Arrays flow through its methods as tensors do through a module."""

    def __init__(self, numerics: Numerics, backend: Backend, workspace: CpuWorkspace, share: Share = WHOLE) -> None:
        self.numerics = numerics
        self.backend = backend
        self.workspace = workspace
        self.share = share
        self.body: list[Operator | Region] = []
        self.casts: dict[Weight, Array] = {}

    # --- writing down ---------------------------------------------------------------------------------

    def operator(
        self,
        name: str,
        kind: OperatorKind,
        kernels: Iterable[Kernel],
        weights: tuple[Weight, ...] = (),
        flops: Flops | None = None,
    ) -> None:
        """Append an operator."""
        self.body.append(Operator(name, kind, tuple(kernels), weights, flops or Flops()))

    def region(
        self,
        name: str,
        start: int,
        inputs: tuple[Array, ...],
        outputs: tuple[Array, ...],
        kept: tuple[Array, ...] = (),
    ) -> None:
        """Fold everything appended since `start` (a length of `body`) into a region that is rerun in backward."""
        self.body[start:] = [Region(name, tuple(self.body[start:]), inputs, outputs, kept)]

    # --- matrix work ----------------------------------------------------------------------------------

    def linear(self, name: str, x: Array, width: Size, bias: bool, split: Split, tied_to: str | None = None) -> Array:
        """y = x W^T (+ b): F.linear. Keeps x (its cast copy under autocast) and autocast's copy of W."""
        weights: tuple[Weight, ...] = (self.weight(f"{name}.weight", (width, x.shape[-1]), split, tied_to),)
        if bias:
            weights += (self.bias(name, width, split),)
        return self.project(name, x, weights)

    def bias(self, name: str, width: Size, split: Split) -> Weight:
        """A projection's bias: divided where its output features are."""
        return self.weight(f"{name}.bias", (width,), split if split in (Split.COLUMN, Split.VOCAB) else Split.NONE)

    def weight(
        self, name: str, shape: tuple[Size, ...], split: Split = Split.NONE, tied_to: str | None = None
    ) -> Weight:
        """A parameter of this rank's sizes."""
        is_part = split is not Split.NONE and self.share.tp > 1
        return Weight(name, shape, self.numerics.weights, split, tied_to, is_part)

    def project(self, name: str, x: Array, weights: tuple[Weight, ...], is_strided: bool = False) -> Array:
        """`linear` with the weights given: one matrix, and perhaps a bias. A strided x is copied if no cast does it."""
        width, wide = weights[0].shape
        kernels = parts_of(weights)
        read_weights: tuple[Array, ...] = weights
        read_x = x
        is_copied = is_strided and x.dtype is self.numerics.compute
        if is_copied:
            read_x = Array(f"{x.name}, contiguous", x.shape, x.dtype)
            kernels.append(Kernel("clone", (x,), (read_x,), passes=(x,)))
        y = Array(f"{name} output", (*x.shape[:-1], width), self.numerics.compute)
        rows = x.elements // wide.value
        forward = 2 * rows * wide.value * width.value
        flops = Flops(forward, 2 * forward)
        if self.numerics.scaling is not None:
            kernels += float8_kernels(self._cast(f"{name} input", x, kernels), weights, y, self.numerics.scaling)
            self.operator(name, OperatorKind.MATMUL, kernels, weights, flops)
            return y
        if self.numerics.autocast:
            read_weights = tuple(self._cast_weight(item, kernels) for item in weights)
            read_x = self._cast(f"{name} input", read_x, kernels)
        saved = (read_x, read_weights[0]) if self.numerics.autocast else (read_x,)
        # of a strided x the bias is added in place once the product is there
        apart, joined = (read_weights[1:], ()) if is_copied else ((), read_weights[1:])
        product = Array(y.name, y.shape, y.dtype) if apart else y
        gradients = (read_weights[0], read_x, *joined)
        forward_scratch = backward_scratch = 0
        if self.packs_products:
            forward_scratch = self.workspace.product(rows, wide.value, width.value)
            backward_scratch = self.workspace.product_backward(rows, wide.value, width.value, bool(joined))
        kernels.append(
            Kernel(
                "linear", (read_x, read_weights[0], *joined), (product,), saved, gradients, through_view=True,
                forward_scratch=forward_scratch, backward_scratch=backward_scratch,
            )
        )  # fmt: skip
        for bias in apart:
            kernels.append(
                Kernel("add_bias", (product, bias), (y,), passes=(product,), gradients=(bias,), is_view=True)
            )
        self.operator(name, OperatorKind.MATMUL, kernels, weights, flops)
        return y

    @property
    def packs_products(self) -> bool:
        """Does oneDNN run the matrix products? It does in bf16 and fp16 on the CPU, and needs workspace."""
        return self.backend is Backend.CPU and self.numerics.compute in (DType.BF16, DType.FP16)

    def _cast(self, name: str, x: Array, kernels: list[Kernel]) -> Array:
        if x.dtype is self.numerics.compute:
            return x
        copy = Array(name, x.shape, self.numerics.compute)
        kernels.append(Kernel("cast", (x,), (copy,), gradients=(x,)))
        return copy

    def _cast_weight(self, weight: Weight, kernels: list[Kernel]) -> Array:
        """Autocast's copy, made once: later readers find it in the cache, and their gradients meet on it. Of a part,
        whose local tensor is no leaf of the graph, every reader makes its own."""
        if weight.is_part:
            part = Array(self._copies, weight.shape, self.numerics.compute)
            kernels.append(Kernel("cast", (weight,), (part,), gradients=(weight,)))
            return part
        if weight in self.casts:
            kernels.append(Kernel("cast", (weight,), (self.casts[weight],), is_weight_cast=True))
            return self.casts[weight]
        copy = Array(self._copies, weight.shape, self.numerics.compute)
        kernels.append(Kernel("cast", (weight,), (copy,), gradients=(weight,), is_weight_cast=True))
        self.casts[weight] = copy
        return copy

    @property
    def _copies(self) -> str:
        return f"{self.numerics.compute.label} copies of weights"

    # --- pointwise and norms ----------------------------------------------------------------------------

    def layer_norm(self, name: str, x: Array, bias: bool) -> Array:
        """LayerNorm over the last dimension. Keeps x, mean and 1/std, these in the weights' type."""
        weights = tuple(
            Weight(f"{name}.{part}", (x.shape[-1],), self.numerics.weights)
            for part in (("weight", "bias") if bias else ("weight",))
        )
        y = Array(f"{name} output", x.shape, x.dtype)
        row = (*x.shape[:-1], ONE)
        kind = self.numerics.weights
        moments = (Array(f"{name} mean", row, kind), Array(f"{name} 1/std", row, kind))
        is_cpu = self.backend is Backend.CPU
        scratch = self.workspace.layer_norm_backward(x.shape[-1].value, x.dtype.nbytes) if is_cpu else 0
        kernel = Kernel(
            "layer_norm", (x, *weights), (y, *moments), (x, *moments), (x, *weights), backward_scratch=scratch
        )
        self.operator(name, OperatorKind.NORM, [kernel], weights, Flops(8 * x.elements, 16 * x.elements))
        return y

    def rms_norm(self, name: str, x: Array) -> Array:
        """RMSNorm over the last dimension. On CUDA one fused kernel; on the CPU torch runs its parts one by one,
        and keeps the normalised x as well. A narrower x reads a copy of the weight in its own type."""
        weight = Weight(f"{name}.weight", (x.shape[-1],), self.numerics.weights)
        read: Array = weight
        if x.dtype is not weight.dtype:
            read = Array(f"{name} weight, cast", weight.shape, x.dtype)
            cast = Kernel("cast", (weight,), (read,), gradients=(weight,))
            self.operator(f"{name} weight", OperatorKind.POINTWISE, [cast], (weight,))
        y = Array(f"{name} output", x.shape, x.dtype)
        rstd = Array(f"{name} 1/rms", (*x.shape[:-1], ONE), DType.FP32)
        if self.backend is Backend.CUDA:
            kernels = [Kernel("rms_norm", (x, read), (y, rstd), (x, rstd), (x, read))]
        else:
            kernels = composite_rms_norm(name, x, read, rstd, y)
        self.operator(name, OperatorKind.NORM, kernels, (weight,), Flops(5 * x.elements, 12 * x.elements))
        return y

    def add(self, name: str, x: Array, y: Array) -> Array:
        """x + y, the residual stream. A narrower y is widened in passing, its gradient narrowed again."""
        out = Array(name, x.shape, x.dtype)
        if y.dtype is x.dtype:
            kernel = Kernel("add", (x, y), (out,), passes=(x, y))
        else:
            kernel = Kernel("add", (x, y), (out,), passes=(x,), gradients=(y,), forward_scratch=out.nbytes)
        self.operator(name, OperatorKind.POINTWISE, [kernel], flops=Flops(x.elements, 0))
        return out

    def add_broadcast(self, name: str, x: Array, y: Array) -> Array:
        """x [b, ...] + y [...]: y's gradient is summed over the batch."""
        out = Array(name, x.shape, x.dtype)
        kernel = Kernel("add", (x, y), (out,), passes=(x,), gradients=(y,))
        self.operator(name, OperatorKind.POINTWISE, [kernel], flops=Flops(x.elements, x.elements))
        return out

    def gelu(self, name: str, x: Array) -> Array:
        """GELU. Keeps x."""
        y = Array(f"{name} output", x.shape, x.dtype)
        self.operator(
            name, OperatorKind.POINTWISE, [Kernel("gelu", (x,), (y,), (x,), (x,))],
            flops=Flops(10 * x.elements, 16 * x.elements),
        )  # fmt: skip
        return y

    def relu(self, name: str, x: Array) -> Array:
        """max(0, x). Keeps the result."""
        y = Array(f"{name} output", x.shape, x.dtype)
        kernel = Kernel("relu", (x,), (y,), (y,), (x,))
        self.operator(name, OperatorKind.POINTWISE, [kernel], flops=Flops(x.elements, x.elements))
        return y

    def scale(self, name: str, x: Array) -> Array:
        """x times a number. Keeps nothing."""
        y = Array(f"{name} output", x.shape, x.dtype)
        kernel = Kernel("mul", (x,), (y,), gradients=(x,))
        self.operator(name, OperatorKind.POINTWISE, [kernel], flops=Flops(x.elements, x.elements))
        return y

    def mul(self, name: str, x: Array, y: Array) -> Array:
        """x * y. Keeps both."""
        out = Array(f"{name} output", x.shape, x.dtype)
        kernel = Kernel("mul", (x, y), (out,), (x, y), (x, y))
        self.operator(name, OperatorKind.POINTWISE, [kernel], flops=Flops(out.elements, 2 * out.elements))
        return out

    def silu(self, name: str, x: Array) -> Array:
        """silu(x). Keeps x."""
        y = Array(f"{name} output", x.shape, x.dtype)
        kernel = Kernel("silu", (x,), (y,), (x,), (x,))
        self.operator(name, OperatorKind.POINTWISE, [kernel], flops=Flops(5 * y.elements, 8 * y.elements))
        return y

    # --- embedding -----------------------------------------------------------------------------

    def arange(self, name: str, length: Size) -> Array:
        """0, 1, ... length - 1."""
        places = Array(name, (length,), DType.INT64)
        self.operator(name, OperatorKind.POINTWISE, [Kernel("arange", (), (places,))])
        return places

    def embedding(
        self, name: str, ids: Array, rows: Size, width: Size, split: Split = Split.VOCAB, tied_to: str | None = None
    ) -> Array:
        """Rows of a table. Keeps the ids; the gradient is dense, as large as the table."""
        weight = self.weight(f"{name}.weight", (rows, width), split, tied_to)
        x = Array(f"{name} output", (*ids.shape, width), self.numerics.stream)
        kernel = Kernel("embedding", (ids, weight), (x,), (ids,), (weight,))
        self.operator(name, OperatorKind.EMBEDDING, [*parts_of((weight,)), kernel], (weight,))
        return x


def parts_of(weights: tuple[Weight, ...]) -> list[Kernel]:
    """The views of a DTensor's local parts that operators read: backward, where gradients become DTensors."""
    return [Kernel(TO_LOCAL, weights)] if weights[0].is_part else []


def composite_rms_norm(name: str, x: Array, weight: Array, rstd: Array, y: Array) -> list[Kernel]:
    """x^2, its mean, x / rms, times the weight: what torch runs where it has no fused kernel."""
    square = Array(f"{name} x^2", x.shape, DType.FP32)
    wide = Array(f"{name} input in fp32", x.shape, DType.FP32)
    mean = Array(f"{name} mean of x^2", rstd.shape, DType.FP32)
    normed = Array(f"{name} normalised", x.shape, DType.FP32)
    kernels: list[Kernel] = []
    source = x
    if x.dtype is not DType.FP32:
        kernels.append(Kernel("cast", (x,), (wide,), gradients=(x,)))
        source = wide
    kernels += [
        Kernel("pow", (source,), (square,), (source,), (source,), backward_scratch=2 * square.nbytes),
        Kernel("mean", (square,), (mean,), gradients=(square,)),
        Kernel("rsqrt", (mean,), (rstd,), (rstd,), (mean,), backward_scratch=2 * rstd.nbytes),
        Kernel("mul", (source, rstd), (normed,), (source, rstd), (source, rstd), backward_scratch=square.nbytes),
    ]
    product = Array(f"{name} product", x.shape, DType.FP32) if x.dtype is not DType.FP32 else y
    kernels.append(
        Kernel("mul", (normed, weight), (product,), (normed,), (normed, weight), backward_scratch=square.nbytes)
    )
    if product is not y:
        kernels.append(Kernel("cast", (product,), (y,), gradients=(product,)))
    return kernels
