"""KernelRates: how long a kernel takes on a device, from its shape and a few named constants."""

from __future__ import annotations

import math
from dataclasses import dataclass

from parallelism.simulator.megatron.work import Kernel, Product, Work
from suite.parse import require

TILE = 128  # rows and columns of the output that one processor makes at a time
ALIGNED = 64  # elements of 16 bits in the 128 bytes that memory moves at once (NVIDIA's guide to matrix products)


@dataclass(frozen=True)
class KernelRates:
    """A device's figures and what of them is reached.

    peak_flops_per_second   of 16-bit matrix products, datasheet
    bytes_per_second        of memory, datasheet
    processors              that share a kernel's work (SMs)
    matrix_share            of the peak, by large products
    half_waves              waves of tiles (tiles over processors) at which half of that is reached
    half_depth              length of the inner sum at which half of it is reached
    unaligned_share         of that, where a width is no multiple of ALIGNED elements
    attention_share         of the peak, by a fused attention core
    memory_share            of the bandwidth
    launch_s                seconds of a kernel beside its work, on the device
    beside_collective       time of a product while a collective takes some of the processors, over its time alone
    host_s                  seconds that the host needs to issue a kernel or a collective, its framework's code included
    host_batch_s            seconds of the host before a micro-batch's first kernel: its tokens, read and sent round
    """

    peak_flops_per_second: float
    bytes_per_second: float
    processors: int
    matrix_share: float = 1.0
    half_waves: float = 0.0
    half_depth: float = 0.0
    unaligned_share: float = 1.0
    attention_share: float = 1.0
    memory_share: float = 1.0
    launch_s: float = 0.0
    beside_collective: float = 1.0
    host_s: float = 0.0
    host_batch_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("peak_flops_per_second", "bytes_per_second", "processors", "matrix_share", "memory_share",
                     "attention_share", "unaligned_share", "beside_collective"):  # fmt: skip
            value = getattr(self, name)
            require(0 < value < math.inf, f"rates.{name}: must be positive and finite, got {value}")
        for name in ("half_waves", "half_depth", "launch_s", "host_s", "host_batch_s"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"rates.{name}: must not be negative, got {value}")

    def product_seconds(self, product: Product) -> float:
        """FLOPs over the achieved rate: the peak's share, less where the output has few tiles or the sum is short."""
        waves = product.m * product.n * product.batch / (TILE * TILE * self.processors)
        wide, deep = waves / (waves + self.half_waves), product.k / (product.k + self.half_depth)
        fit = self.unaligned_share if product.n % ALIGNED or product.k % ALIGNED else 1.0
        return product.flops / (self.peak_flops_per_second * self.matrix_share * wide * deep * fit)

    def kernel_seconds(self, kernel: Kernel) -> float:
        """The longer of arithmetic and traffic, and the launch."""
        arithmetic = self.product_seconds(kernel.product) if kernel.product else 0.0
        arithmetic += kernel.flops / (self.peak_flops_per_second * self.attention_share)
        return max(arithmetic, kernel.moved / (self.bytes_per_second * self.memory_share)) + self.launch_s

    def device_seconds(self, work: Work) -> float:
        """All its kernels, one after the other."""
        return sum(map(self.kernel_seconds, work.kernels))

    def host_seconds(self, work: Work) -> float:
        """To issue all its kernels and collectives."""
        return self.host_s * (len(work.kernels) + len(work.calls))
