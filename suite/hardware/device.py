"""Device: what one accelerator (or this machine's CPU) can do, every number with its source beside it.

Bytes, FLOP/s, bytes/s and watts, all decimal where a datasheet is; peaks are dense (never the sparse
figure, which is twice as large). A number that is not known is None and prints n/a; it is never
filled in from another device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from suite.parse import require
from suite.spec import Precision

TERA = 1e12
MIB = 2**20


class DeviceKind(StrEnum):
    """Which runtime drives the device."""

    CPU = "cpu"
    CUDA = "cuda"
    ROCM = "rocm"


class MatmulDtype(StrEnum):
    """Number formats that matrix products run in (a `Precision` is about a whole step)."""

    FP32 = "fp32"  # the vector units, or the CPU's; no tensor-core rounding
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"


MATMUL_DTYPES = {
    Precision.FP32: MatmulDtype.FP32,
    Precision.BF16_MIXED: MatmulDtype.BF16,
    Precision.BF16: MatmulDtype.BF16,
    Precision.FP16_MIXED: MatmulDtype.FP16,
    Precision.FP8: MatmulDtype.FP8,
    Precision.FP8_ROWWISE: MatmulDtype.FP8,
}


def matmul_dtype(precision: Precision) -> MatmulDtype:
    """The format in which a step of this precision runs its matrix products (fp32: without TF32, torch's default)."""
    return MATMUL_DTYPES[precision]


@dataclass(frozen=True)
class Figure:
    """A number and where it comes from. `value` None means not known; `source` then says why."""

    value: float | None
    source: str
    url: str = ""

    def __post_init__(self) -> None:
        require(bool(self.source), f"figure: {self.value!r} has no source; say where it comes from")
        require(
            self.value is None or (math.isfinite(self.value) and self.value >= 0),
            f"figure: must be finite and not negative, got {self.value!r} ({self.source})",
        )


NOT_FOUND = Figure(None, "no source found")


@dataclass(frozen=True)
class MatmulRates:
    """FLOP/s of dense matrix products, a figure a format."""

    fp32: Figure = NOT_FOUND
    tf32: Figure = NOT_FOUND
    bf16: Figure = NOT_FOUND
    fp16: Figure = NOT_FOUND
    fp8: Figure = NOT_FOUND

    def of(self, dtype: MatmulDtype | str) -> Figure:
        """The figure of one format; ValueError for a format that does not exist."""
        figure: Figure = getattr(self, MatmulDtype(dtype).value)
        return figure


@dataclass(frozen=True)
class Device:
    """One device, as a cluster has them: capacity, dense matrix peaks, memory bandwidth, power."""

    name: str  # what a Case says: "h100-sxm"
    product: str  # what its maker calls it
    kind: DeviceKind
    memory_bytes: Figure  # usable capacity: the driver's total where a source was found
    peak_flops_per_second: MatmulRates  # datasheet, dense
    memory_bandwidth_bytes_per_second: Figure
    power_watts: Figure
    context_bytes: Figure = NOT_FOUND  # device memory the runtime takes before the first tensor
    blas_workspace_bytes: Figure = NOT_FOUND  # that torch allocates for each handle of the matrix library
    achieved_flops_per_second: MatmulRates = MatmulRates()  # best shape of a measured sweep: an upper bound in training
    aliases: tuple[str, ...] = ()  # other names of this very device, as published tables write them

    def peak(self, dtype: MatmulDtype | str) -> Figure:
        """Dense datasheet peak in FLOP/s of matrix products in `dtype`."""
        return self.peak_flops_per_second.of(dtype)

    def achieved(self, dtype: MatmulDtype | str) -> Figure:
        """Best matrix rate anybody measured in FLOP/s, where a source was found."""
        return self.achieved_flops_per_second.of(dtype)


def gib(value: float) -> int:
    """Whole bytes of a capacity that its source prints in GiB (2^30)."""
    return int(value * 2**30)


def tera_rates(source: str, url: str = "", **teraflops_per_second: float | None) -> MatmulRates:
    """Rates of one source, given in TFLOP/s by format name; None is a format the device does not have.

    A format left out is one that the source does not state.
    """
    figures = {
        name: Figure(None, f"the device has no {name} matrix units: {source}", url)
        if rate is None
        else Figure(rate * TERA, source, url)
        for name, rate in teraflops_per_second.items()
    }
    unstated = Figure(None, f"not stated: {source}", url)
    return MatmulRates(**{dtype.value: figures.get(dtype.value, unstated) for dtype in MatmulDtype})


def best_shape(row: str, device: str, note: str = "") -> str:
    """Source text of a row of the published matrix sweep: family `mamf` of hw_micro.csv."""
    return (
        f"hw_micro.csv {row} ({device}): best shape of a brute-force sweep, mean of 100 iterations"
        f"{', ' + note if note else ''}"
    )


_BLAS = "torch's default (aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize)"

#: cuBLAS's on Hopper and Blackwell, and on older parts (:4096:2:16:8); hipBLAS's on CDNA 3.
BLAS_32_MIB = Figure(32 * MIB, f"{_BLAS}: 32 MiB from compute capability 9 on")
BLAS_8_MIB = Figure(8 * MIB + 128 * 1024, f"{_BLAS}: 2 x 4 MiB + 8 x 16 KiB below compute capability 9")
BLAS_128_MIB = Figure(128 * MIB, f"{_BLAS}: 128 MiB on gfx94x")

#: Where those rows were published.
SWEEP_URL = "https://github.com/stas00/ml-engineering/blob/744d01e18b79/compute/accelerator/README.md"
