"""The roofline (Williams et al. 2009, doi:10.1145/1498765.1498785): time is the larger of computing and reading."""

from __future__ import annotations

from dataclasses import dataclass

from parallelism.simulator.serving_work import Work
from suite.parse import require


@dataclass(frozen=True)
class Roofline:
    """Two rates of one rank, and where they come from in words."""

    flops_per_second: float
    bytes_per_second: float
    basis: str

    def __post_init__(self) -> None:
        for name in ("flops_per_second", "bytes_per_second"):
            require(getattr(self, name) > 0, f"roofline.{name}: must be positive, got {getattr(self, name)}")

    @property
    def ridge(self) -> float:
        """FLOPs a byte from which on computing takes longer than reading."""
        return self.flops_per_second / self.bytes_per_second

    def compute_seconds(self, work: Work) -> float:
        """Were nothing read."""
        return work.flops / self.flops_per_second

    def memory_seconds(self, work: Work) -> float:
        """Were nothing computed."""
        return work.nbytes / self.bytes_per_second

    def seconds(self, work: Work) -> float:
        """The larger of both."""
        return max(self.compute_seconds(work), self.memory_seconds(work))
