"""How fast this machine multiplies matrices: measured in a process of its own, looked up by size.

One measurement is the three products of a linear layer's training step, (m tokens, k in, n out): forward
x W^T, input gradient g W and weight gradient g^T x, 6 m n k FLOPs, on so many ranks at once, each with its
share of the cores. Rates are FLOP/s per rank, medians over readings and ranks. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from suite.hardware.device import MatmulDtype
from suite.parse import SpecError, from_mapping, require, to_mapping
from suite.stats import NOISY_SPREAD, summarize

WORKER = "suite.hardware.matrix_rate_worker"
DTYPES = (MatmulDtype.FP32, MatmulDtype.BF16, MatmulDtype.FP16)
#: (m, n, k), spread over the sizes that models for a few cores have; side 77 to 1024
SHAPES = (
    (128, 64, 64),
    (512, 128, 128),
    (256, 256, 256),
    (2048, 256, 256),
    (512, 512, 512),
    (2048, 1024, 256),
    (1024, 2048, 512),
    (1024, 1024, 1024),
)
#: a measurement beside which other processes used more than so many cores says so
BUSY_CORES = 0.1
#: seconds for torch's import and the forks, and again the timed seconds for shapes that outlast their slot
START_ALLOWANCE_S = 60.0
SLOWNESS_ALLOWANCE = 5.0


class MatrixRateError(RuntimeError):
    """The measuring process failed; one line says how."""


@dataclass(frozen=True, slots=True)
class MatrixRate:
    """The rate of one shape in one format with so many ranks at once."""

    dtype: MatmulDtype
    ranks: int
    threads: int
    m: int
    n: int
    k: int
    flops_per_second: float
    """per rank; median over the readings of all ranks"""
    iqr_flops_per_second: float
    readings: int
    """of all ranks together"""

    def __post_init__(self) -> None:
        require(self.flops_per_second > 0, f"matrix rate: must be positive, got {self.flops_per_second} of {self}")

    @property
    def side(self) -> float:
        """Side of the square product that does as many FLOPs for each number it touches."""
        return equivalent_side(self.m, self.n, self.k)

    @property
    def is_noisy(self) -> bool:
        """Is the IQR more than suite.stats.NOISY_SPREAD of the median?"""
        return self.iqr_flops_per_second > NOISY_SPREAD * self.flops_per_second

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}{' (noisy)' if self.is_noisy else ''}"


@dataclass(frozen=True, slots=True)
class RateLookup:
    """A rate and, in words, what it rests on."""

    flops_per_second: float
    basis: str


@dataclass(frozen=True)
class MatrixRates:
    """All that one measurement found. JSON: `to_mapping`, and `MatrixRates.from_mapping` back."""

    cpu: str
    cores: int
    torch: str
    rates: tuple[MatrixRate, ...]
    other_cores: float = 0.0
    """cores that other processes kept busy meanwhile, on average: near 0 on a quiet machine"""
    schema: int = 1

    def __post_init__(self) -> None:
        require(self.schema == 1, f"matrix_rates.schema: {self.schema} is foreign; this version reads 1")

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> MatrixRates:
        """Read the JSON form. SpecError names what is wrong in it."""
        return from_mapping(cls, data, "matrix_rates")

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready data."""
        data: dict[str, Any] = to_mapping(self)
        return data

    def rate(self, dtype: MatmulDtype | str, ranks: int, m: int, n: int, k: int) -> RateLookup:
        """FLOP/s per rank of an (m, n, k) product: of that very shape where it was measured, else interpolated
        linearly over the log of the equivalent side; beyond the measured sizes the last one's rate holds.

        The basis says which of these it was. Left to right: tokens, outputs, inputs of a linear layer.
        Raises SpecError for a format or a number of ranks that was not measured, or a size below 1.
        """
        require(min(m, n, k) >= 1, f"matrix rate: m, n and k must be at least 1, got {m}, {n}, {k}")
        points = sorted((item for item in self.rates if (item.dtype, item.ranks) == (dtype, ranks)), key=_side)
        if not points:
            measured = sorted({f"{item.dtype} with {item.ranks}" for item in self.rates})
            raise SpecError(
                f"matrix rate: {dtype} with {ranks} ranks was not measured; measured: {', '.join(measured)}"
            )
        value, how = _look_up(points, (m, n, k))
        threads = points[0].threads
        parts = [
            f"{dtype} matrix products measured on this machine ({self.cpu}, torch {self.torch}),"
            f" {ranks} {'rank' if ranks == 1 else 'ranks'} at once with {threads}"
            f" {'thread' if threads == 1 else 'threads'} each",
            how,
        ]
        if self.other_cores > BUSY_CORES:
            parts.append(f"other processes kept {self.other_cores:.1f} of {self.cores} cores busy meanwhile")
        return RateLookup(value, "; ".join(parts))


def equivalent_side(m: int, n: int, k: int) -> float:
    """3 mnk / (mn + nk + km): m = n = k gives itself. Rates of unlike shapes line up over it, over mnk they do not."""
    return 3 * m * n * k / (m * n + n * k + k * m)


def measure_matrix_rates(
    rank_counts: Iterable[int] = (1, 2, 4),
    seconds: float = 4.0,
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    dtypes: Sequence[MatmulDtype] = (MatmulDtype.FP32, MatmulDtype.BF16),
) -> MatrixRates:
    """Measure this machine: about `seconds` of timing for each rank count, and a few for starting.

    Raises SpecError for bad arguments, MatrixRateError (one line) where the measuring process fails or hangs.
    """
    counts = sorted(set(rank_counts))
    require(bool(counts) and counts[0] >= 1, f"rank_counts: at least one, each at least 1, got {counts}")
    require(0 < seconds < 600, f"seconds: must be above 0 and below 600, got {seconds}")
    require(bool(shapes) and min(map(min, shapes)) >= 1, f"shapes: at least one, sizes at least 1, got {list(shapes)}")
    unknown = [str(dtype) for dtype in dtypes if dtype not in DTYPES]
    require(bool(dtypes) and not unknown, f"dtypes: at least one of {', '.join(DTYPES)}, got {', '.join(dtypes)}")
    request = {
        "rank_counts": counts,
        "slot_seconds": seconds / (len(shapes) * len(dtypes)),
        "shapes": [list(shape) for shape in shapes],
        "dtypes": [dtype.value for dtype in dtypes],
    }
    answer = _run_worker(request, START_ALLOWANCE_S + SLOWNESS_ALLOWANCE * seconds * len(counts))
    rates = tuple(_summary(row) for row in answer["rows"])
    facts = {name: answer[name] for name in ("cpu", "cores", "torch", "other_cores")}
    return MatrixRates(rates=rates, **facts)


def _run_worker(request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """What the worker answers."""
    from suite.child import ChildError, ask  # here, because looking a rate up does not need it

    try:
        answer: dict[str, Any] = ask(WORKER, request, timeout_s)
    except ChildError as error:
        raise MatrixRateError(f"matrix rate: the measuring process: {error}") from None
    return answer


def _summary(row: Mapping[str, Any]) -> MatrixRate:
    """Median and IQR of the readings of one point (`seconds`: those of all ranks)."""
    flops = 6 * row["m"] * row["n"] * row["k"]
    summary = summarize([flops / seconds for seconds in row["seconds"]])
    assert summary is not None  # the worker takes several readings of every point
    return MatrixRate(
        dtype=MatmulDtype(row["dtype"]),
        ranks=row["ranks"],
        threads=row["threads"],
        m=row["m"],
        n=row["n"],
        k=row["k"],
        flops_per_second=summary.median,
        iqr_flops_per_second=summary.iqr,
        readings=summary.count,
    )


def _side(point: MatrixRate) -> float:
    return point.side


def _look_up(points: Sequence[MatrixRate], shape: tuple[int, int, int]) -> tuple[float, str]:
    """The rate of a shape, and how it was found; `points` ascend by side."""
    for point in points:
        if (point.m, point.n, point.k) == shape:
            return point.flops_per_second, f"this very shape, {point}"
    side = equivalent_side(*shape)
    if side <= points[0].side:
        return points[0].flops_per_second, f"rate of the smallest size measured, {points[0]}"
    if side >= points[-1].side:
        return points[-1].flops_per_second, f"rate of the largest size measured, {points[-1]}"
    above = next(index for index, point in enumerate(points) if point.side > side)
    low, high = points[above - 1], points[above]
    part = math.log(side / low.side) / math.log(high.side / low.side)
    value = low.flops_per_second + part * (high.flops_per_second - low.flops_per_second)
    return value, f"interpolated over log size between {low} and {high}"
