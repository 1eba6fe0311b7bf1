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
from parallelism.simulator.megatron.work import NO_WORK, Work
from parallelism.simulator.plan import NOTHING, Cost, Part, Unit
from suite.collectives import Call
from suite.layout import RecomputeKind


@dataclass(frozen=True)
class Machine:
    """What a run is timed on."""

    rates: KernelRates
    links: Links


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

    def cost(self, run: MegatronRun, links: Links) -> Cost:
        """With the seconds of its collectives, which its operators wait for."""
        talk = sum(links.seconds(call, Axis.TENSOR, run) for call in self.calls)
        return Cost(self.device, self.host, ((Part.TENSOR, talk),) if talk else ())


@dataclass(frozen=True, slots=True)
class TimedLayer:
    """A layer's passes."""

    forward: TimedWork
    inputs: TimedWork
    weights: TimedWork
    core: TimedWork

    def unit(self, name: str, run: MegatronRun, links: Links, recompute: RecomputeKind = RecomputeKind.NONE) -> Unit:
        """What the engine is told; `recompute` says what is run again before the backward pass."""
        forward, inputs, weights = (work.cost(run, links) for work in (self.forward, self.inputs, self.weights))
        again = {RecomputeKind.FULL: forward, RecomputeKind.SELECTIVE: self.core.cost(run, links)}
        return Unit(name, forward, inputs, weights, again.get(recompute, NOTHING))


@lru_cache(maxsize=4096)
def timed_layer(kind: LayerKind, shape: Shape, rates: KernelRates) -> TimedLayer:
    """Every kernel of a layer by the device's rates."""
    layer = _LAYERS[kind](shape)
    core = layer.core_forward if layer.core else NO_WORK
    return TimedLayer(*(_timed(work, rates) for work in (layer.forward, layer.inputs, layer.weights, core)))


def _timed(work: Work, rates: KernelRates) -> TimedWork:
    return TimedWork(rates.device_seconds(work), rates.host_seconds(work), work.calls)


def unit_of(kind: LayerKind, run: MegatronRun, machine: Machine, recompute: RecomputeKind = RecomputeKind.NONE) -> Unit:
    """A run's unit of one layer, named after it."""
    return timed_layer(kind, Shape.of(run), machine.rates).unit(kind.value, run, machine.links, recompute)
