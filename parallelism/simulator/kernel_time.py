"""Seconds of a segment's kernels on a device: work over achieved rates, launches, and the host that issues them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

from parallelism.simulator.fused_work import compiled_work
from parallelism.simulator.plan import NOTHING, Cost
from parallelism.simulator.stack import Execution, Flash, Reruns, Stack
from parallelism.simulator.work import Attention, Moved, Product, Repeated, SegmentWork, Work, eager_work
from suite.hardware.device import Device, MatmulDtype
from suite.hardware.speeds import Speeds
from suite.hardware.training_rates import MEMORY_SHARE, product_rate
from suite.operators import DType, Segment
from suite.parse import SpecError

#: shares of a datasheet's figures that stand in where nothing was measured or fitted
MATMUL_SHARE = 0.75  # of the peak: large products of a training step, at the clock that the power limit leaves
BEST_SHAPE_SHARE = 0.9  # of the best shape of a measured sweep
ATTENTION_SHARE = 0.5  # of the rate of large products: FlashAttention-2, forward and backward (arXiv:2307.08691, 4.1)
#: heads of 64 against heads of 128, causal, 16k tokens: 171 of 189 TFLOP/s (arXiv:2307.08691, figure 4)
NARROW_HEAD, NARROW_HEAD_SHARE = 64, 171 / 189
#: "around 2x speedup compared to FlashAttention" (arXiv:2307.08691, abstract)
FLASH_SHARE = {Flash.ONE: 0.5, Flash.TWO: 1.0}

MATMUL_DTYPE = {
    DType.FP32: MatmulDtype.FP32,
    DType.BF16: MatmulDtype.BF16,
    DType.FP16: MatmulDtype.FP16,
    DType.FP8: MatmulDtype.FP8,
}


@dataclass(frozen=True, slots=True)
class Passes:
    """Cost of one segment for one micro-batch: forward, the halves of backward, what is run again before it.

    `attention`: seconds of it in fused attention, forward, backward and rerun, beside which a ring's messages travel.
    """

    forward: Cost
    inputs: Cost
    weights: Cost
    rerun: Cost = NOTHING
    attention: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Rates:
    """A device's achieved rates: measured or fitted Speeds first, else documented shares of its datasheet.

    Without a curve, a product's rate is product_rate's (suite/hardware/training_rates.py).
    Raises SpecError where the device has no figure to take a share of.
    """

    device: Device
    speeds: Speeds = field(default_factory=lambda: Speeds(""))
    attention_share: float = 1.0
    """of the attention kernel's rate, where an older generation of it runs"""

    def seconds(self, work: Work) -> float:
        """Of one kernel, or of those that are repeated; launches included."""
        match work:
            case Repeated(kernels=kernels, times=times):
                return times * sum(map(self.seconds, kernels))
            case Product(dtype=dtype, side=side, flops=flops):
                alone = flops / self.matmul(dtype, side)
            case Attention(flops=flops, tokens=tokens, dtype=dtype, width=width):
                alone = flops / self.attention(dtype, tokens, width)
            case Moved(nbytes=nbytes):
                alone = nbytes / self.memory(nbytes)
        return alone + self.speeds.launch_s

    def matmul(self, dtype: DType, side: float) -> float:
        """FLOP/s of a product of that equivalent side."""
        kind = MATMUL_DTYPE[dtype]
        curve = self.speeds.matmul.get(kind)
        if curve is not None:
            return curve.at(side)
        top, bandwidth = self.top(kind), self.memory(float("inf"))
        return product_rate(top, bandwidth, dtype.nbytes, side)

    def attention(self, dtype: DType, tokens: int, width: int = 128) -> float:
        """FLOP/s of a fused attention kernel, the masked half not counted."""
        kind = MATMUL_DTYPE[dtype]
        share = self.attention_share * (NARROW_HEAD_SHARE if width <= NARROW_HEAD else 1.0)
        curve = self.speeds.attention.get(kind)
        if curve is not None:
            return share * curve.at(tokens)
        largest = self.speeds.matmul.get(kind)
        return share * ATTENTION_SHARE * (largest.values[-1] if largest is not None else self.top(kind))

    def memory(self, nbytes: float) -> float:
        """Bytes/s of a kernel that moves so many."""
        if self.speeds.memory is not None:
            return self.speeds.memory.at(nbytes)
        figure = self.device.memory_bandwidth_bytes_per_second.value
        if figure is None:
            raise SpecError(
                f"cluster.device: {self.device.name} has no memory bandwidth; calibrate it, or name another"
            )
        return MEMORY_SHARE * figure

    def top(self, kind: MatmulDtype) -> float:
        """FLOP/s of large products by the datasheet's or a sweep's figure."""
        best, peak = self.device.achieved(kind).value, self.device.peak(kind).value
        if best is not None:
            return BEST_SHAPE_SHARE * best
        swept, beside = self.device.achieved(MatmulDtype.BF16).value, self.device.peak(MatmulDtype.BF16).value
        if peak is not None and swept is not None and beside is not None:
            return BEST_SHAPE_SHARE * swept / beside * peak  # no sweep of this format: bf16's share of its peak
        if peak is None:
            raise SpecError(
                f"cluster.device: {self.device.name} has no {kind} rate; calibrate it, or name another one or precision"
            )
        return MATMUL_SHARE * peak


@dataclass(frozen=True)
class GpuPricing:
    """Cost of segments and of updates on a GPU. Equal segments are priced once."""

    rates: Rates
    stack: Stack = Stack()
    _priced: dict[Segment, Passes] = field(default_factory=dict, compare=False, repr=False)

    def passes(self, segment: Segment) -> Passes:
        """The segment's forward and backward pass, for one micro-batch, without what it sends."""
        found = self._priced.get(segment)
        if found is None:
            found = self._priced[segment] = self._of(self._work(segment))
        return found

    def moved(self, *sizes: float) -> Cost:
        """Kernels that move so many bytes each."""
        return self.cost(Moved(size) for size in sizes if size)

    def cost(self, works: Iterable[Work]) -> Cost:
        """Kernels one after the other; compiled, the host issues them without keeping the device waiting."""
        listed = list(works)
        host = 0.0 if self.stack.execution is Execution.COMPILED else _launches(listed) * self.rates.speeds.host_s
        return Cost(sum(map(self._rates.seconds, listed)), host)

    @cached_property
    def _rates(self) -> Rates:
        return replace(self.rates, attention_share=FLASH_SHARE[self.stack.flash])

    def _work(self, segment: Segment) -> SegmentWork:
        stops = self.stack.reruns is Reruns.EARLY_STOP
        own = self.stack.applied(segment)
        return compiled_work(own, stops) if self.stack.fuses(segment) else eager_work(own.body, stops)

    def _of(self, work: SegmentWork) -> Passes:
        forward, backward, rerun = (
            self.cost(item for item in part if isinstance(item, Attention)).compute
            for part in (work.forward, work.inputs, work.rerun)
        )
        parts = [self.cost(part) for part in (work.forward, work.inputs, work.weights, work.rerun)]
        return Passes(parts[0], parts[1], parts[2], parts[3], (forward, backward, rerun))


def _launches(works: Iterable[Work]) -> int:
    """Kernels that the host issues."""
    return sum(work.times * len(work.kernels) if isinstance(work, Repeated) else 1 for work in works)
