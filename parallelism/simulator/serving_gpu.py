"""A served case on a GPU: every kernel at the roofline of published rates, and what tensor-parallel ranks say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from parallelism.simulator.collective_time import message_seconds
from parallelism.simulator.kernel_time import MATMUL_DTYPE
from parallelism.simulator.roofline import Roofline
from parallelism.simulator.serving_messages import serving_messages
from parallelism.simulator.serving_work import Parts
from suite.cache_shape import compute_dtype
from suite.case import Case
from suite.hardware import device
from suite.hardware.achieved import ACHIEVED, speeds_of
from suite.hardware.curve import Curve
from suite.hardware.device import Device
from suite.hardware.links import fabric_of
from suite.parse import SpecError

_DATASHEET = "the datasheet's figure, which nothing reaches: a lower bound of the time"


@dataclass(frozen=True)
class GpuRates:
    """What products and reads reach on a case's device, by microbenchmarks that others published; its datasheet where
    there are none. SpecError where neither is known."""

    case: Case

    def seconds(self, parts: Parts) -> float:
        """Kernels one after the other, each the longer of computing at the rate of large products and reading at the
        rate of a kernel that moves as many bytes. Not counted: launches, the host, what small kernels take beside."""
        return sum(
            count * max(work.flops / self.flops_per_second, work.nbytes / self.memory.at(max(1.0, work.nbytes)))
            for work, count in parts.items()
        )

    @property
    def roofline(self) -> Roofline:
        """The rates of large products and of large reads."""
        return Roofline(self.flops_per_second, self.memory.values[-1], self.basis)

    @cached_property
    def memory(self) -> Curve:
        """Bytes/s of a kernel by the bytes that it moves."""
        if self._device.name in ACHIEVED:
            found = speeds_of(self._device).memory
            if found is not None:
                return found
        figure = self._device.memory_bandwidth_bytes_per_second
        if not figure.value:
            raise SpecError(f"cluster.device: {self._device.name} has no memory bandwidth; name another device")
        return Curve.flat(figure.value, f"{_DATASHEET} ({figure.source})")

    @property
    def flops_per_second(self) -> float:
        """Of large products."""
        return self._products[0]

    @property
    def basis(self) -> str:
        """Where both come from, and what they bound."""
        return (
            f"a roofline of {self._device.product}, kernel by kernel: launches, the host and"
            f" small kernels not counted; products: {self._products[1]}; memory: {self.memory.source}"
        )

    @cached_property
    def _device(self) -> Device:
        return device(self.case.cluster.device)

    @cached_property
    def _products(self) -> tuple[float, str]:
        kind = MATMUL_DTYPE[compute_dtype(self.case)]
        if self._device.name in ACHIEVED:
            curve = speeds_of(self._device).matmul.get(kind)
            if curve is not None:
                return curve.values[-1], curve.source
        peak = self._device.peak(kind)
        if not peak.value:
            raise SpecError(
                f"cluster.device: {self._device.name} has no {kind} rate; name another device or workload.precision"
            )
        return peak.value, f"{_DATASHEET} ({peak.source})"


def gpu_message_seconds(case: Case, tokens: int) -> float:
    """Of all that ranks say in a pass, in the slowest group. SpecError where links are not known."""
    messages = list(serving_messages(case, tokens))
    if not messages:
        return 0.0
    fabric = fabric_of(case)
    return sum(each.count * message_seconds(each, case, fabric) for each in messages)
