"""Layers timed on a device: what micro-batches, runs and searches that share a shape share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, auto
from functools import lru_cache

from parallelism.megatron.run import MegatronRun
from parallelism.simulator.megatron.block import block_layer
from parallelism.simulator.megatron.ends import embedding_layer, head_layer
from parallelism.simulator.megatron.links import Axis, Links
from parallelism.simulator.megatron.rates import KernelRates
from parallelism.simulator.megatron.shape import Shape
from parallelism.simulator.megatron.work import NO_WORK, Layer, Work
from parallelism.simulator.plan import NOTHING, Cost, Part, Unit
from suite.collectives import Call, Collective
from suite.layout import RecomputeKind


@dataclass(frozen=True)
class Machine:
    """What a run is timed on."""

    rates: KernelRates
    links: Links


class TensorOverlap(StrEnum):
    """When the tensor-parallel ranks talk."""

    BLOCKING = auto()  # compute waits for every collective
    BACKWARD = auto()  # one half of a backward product beside the other half's collective


class LayerKind(StrEnum):
    """What a stage is made of."""

    EMBEDDING = auto()
    BLOCK = auto()
    HEAD = auto()


_LAYERS = {LayerKind.EMBEDDING: embedding_layer, LayerKind.BLOCK: block_layer, LayerKind.HEAD: head_layer}


@dataclass(frozen=True, slots=True)
class TimedWork:
    """Seconds of the device and of the host, and the collectives of the tensor-parallel ranks."""

    device: float
    host: float
    calls: tuple[Call, ...]

    def talk(self, run: MegatronRun, links: Links) -> float:
        """Seconds of its collectives, one after the other."""
        return sum(links.seconds(call, Axis.TENSOR, run) for call in self.calls)

    def cost(self, run: MegatronRun, links: Links, hidden: float = 0.0) -> Cost:
        """With the seconds of its collectives, which its operators wait for, but for those that are hidden."""
        talk = max(0.0, self.talk(run, links) - hidden)
        return Cost(self.device, self.host, ((Part.TENSOR, talk),) if talk else ())


class Half(StrEnum):
    """Of a backward pass."""

    INPUTS = auto()
    WEIGHTS = auto()


@dataclass(frozen=True, slots=True)
class Beside:
    """An operator's collective in one half of its backward pass, and the seconds of its other half's kernels."""

    half: Half
    talks: TimedWork
    computes: float


@dataclass(frozen=True, slots=True)
class TimedLayer:
    """A layer's passes; `beside`: collectives of one half of a product's backward pass, seconds of its other half, and
    which half talks."""

    forward: TimedWork
    inputs: TimedWork
    weights: TimedWork
    core: TimedWork
    beside: tuple[Beside, ...]
    slowdown: float

    def unit(
        self, name: str, run: MegatronRun, links: Links, recompute: RecomputeKind = RecomputeKind.NONE,
        overlap: TensorOverlap = TensorOverlap.BLOCKING,
    ) -> Unit:  # fmt: skip
        """What the engine is told; `recompute` says what is run again before the backward pass."""
        is_hidden = overlap is TensorOverlap.BACKWARD
        forward = self.forward.cost(run, links)
        inputs = self.inputs.cost(run, links, self._hidden(Half.INPUTS, run, links) if is_hidden else 0.0)
        weights = self.weights.cost(run, links, self._hidden(Half.WEIGHTS, run, links) if is_hidden else 0.0)
        again = {RecomputeKind.FULL: forward, RecomputeKind.SELECTIVE: self.core.cost(run, links)}
        return Unit(name, forward, inputs, weights, again.get(recompute, NOTHING))

    def _hidden(self, half: Half, run: MegatronRun, links: Links) -> float:
        """Of a half's collectives, what the other half's products hide (Megatron-LM's
        LinearWithGradAccumulationAndAsyncCommunication; arXiv:2205.05198, section 4.2.2): the products slow down
        meanwhile, and that much is not hidden."""
        return sum(
            min(each.talks.talk(run, links) / self.slowdown, each.computes) for each in self.beside if each.half is half
        )


@lru_cache(maxsize=4096)
def timed_layer(kind: LayerKind, shape: Shape, rates: KernelRates) -> TimedLayer:
    """Every kernel of a layer by the device's rates."""
    layer = _LAYERS[kind](shape)
    core = layer.core_forward if layer.core else NO_WORK
    forward, inputs, weights, again = (
        _timed(work, rates) for work in (layer.forward, layer.inputs, layer.weights, core)
    )
    return TimedLayer(forward, inputs, weights, again, _beside(layer, rates), rates.beside_collective)


def _beside(layer: Layer, rates: KernelRates) -> tuple[Beside, ...]:
    """An input's gradient is summed over the ranks beside the product for the weights' gradient; what that product
    needs is gathered beside the product for the input's gradient. Only operators that have both."""
    found = []
    for operator in layer.operators:
        inputs, weights = operator.inputs, operator.weights
        if not (inputs.kernels and weights.kernels):
            continue
        if inputs.calls and inputs.calls[0].collective is not Collective.ALL_GATHER:
            found.append(Beside(Half.INPUTS, _timed(inputs, rates), rates.device_seconds(weights)))
        if weights.calls:
            found.append(Beside(Half.WEIGHTS, _timed(weights, rates), rates.device_seconds(inputs)))
    return tuple(found)


def _timed(work: Work, rates: KernelRates) -> TimedWork:
    return TimedWork(rates.device_seconds(work), rates.host_seconds(work), work.calls)


def unit_of(
    kind: LayerKind, run: MegatronRun, machine: Machine, recompute: RecomputeKind = RecomputeKind.NONE,
    overlap: TensorOverlap = TensorOverlap.BLOCKING,
) -> Unit:  # fmt: skip
    """A run's unit of one layer, named after it."""
    layer = timed_layer(kind, Shape.of(run), machine.rates)
    return layer.unit(kind.value, run, machine.links, recompute, overlap)
