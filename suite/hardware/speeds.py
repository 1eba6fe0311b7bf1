"""Speeds: how fast a device really works, beside its datasheet: measured by a calibration, or in published runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from suite.hardware.curve import Curve
from suite.hardware.device import MatmulDtype
from suite.parse import require


@dataclass(frozen=True)
class Speeds:
    """Achieved rates of one device, by size.

    matmul      FLOP/s of a matrix product by its equivalent side (matrix_rate.equivalent_side), a curve a format
    attention   FLOP/s of a fused attention kernel by tokens in the sequence, the masked half not counted
    memory      bytes/s of an operator that does little arithmetic, by the bytes it reads and writes
    launch_s    seconds that every kernel takes beside its work: the gap between two on the device
    host_s      seconds that the host needs to issue a kernel, its framework's Python included
    slowdown    time of compute while communication runs beside it, over its time alone
    """

    device: str
    matmul: dict[MatmulDtype, Curve] = field(default_factory=dict)
    attention: dict[MatmulDtype, Curve] = field(default_factory=dict)
    memory: Curve | None = None
    launch_s: float = 0.0
    host_s: float = 0.0
    slowdown: float = 1.0
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("launch_s", "host_s"):
            value = getattr(self, name)
            require(value >= 0, f"speeds.{name}: must not be negative, got {value}")
        require(self.slowdown >= 1, f"speeds.slowdown: must be at least 1, got {self.slowdown}")
