"""Kernels, segments and weights made up for tests of the walk: small enough to work out by hand."""

from __future__ import annotations

from memory.events import Phase
from memory.walk import SegmentWalk
from suite.operators import Array, DType, Kernel, Operator, OperatorKind, Region, Segment, Size, Weight
from suite.record import Component


def array(name: str, elements: int, dtype: DType = DType.FP32) -> Array:
    """So many elements; in fp32 4 bytes each."""
    return Array(name, (Size("n", elements),), dtype)


def weight(name: str, elements: int, tied_to: str | None = None) -> Weight:
    """A parameter of so many fp32 elements."""
    return Weight(name, (Size("n", elements),), DType.FP32, tied_to=tied_to)


def operator(*kernels: Kernel) -> Operator:
    """An operator that owns the weights its kernels read."""
    weights = tuple(item for kernel in kernels for item in kernel.reads if isinstance(item, Weight))
    return Operator("made up", OperatorKind.POINTWISE, kernels, weights)


def segment(*parts: Kernel | Region, inputs: tuple[Array, ...], output: Array | None) -> Segment:
    """A segment of these kernels and regions."""
    body = tuple(part if isinstance(part, Region) else operator(part) for part in parts)
    return Segment("made up", body, inputs, (), output)


def region(*kernels: Kernel, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> Region:
    """Kernels that are rerun in the backward pass."""
    return Region("made up", tuple(operator(kernel) for kernel in kernels), inputs, outputs)


def deltas(walk: SegmentWalk) -> tuple[list[int], list[int]]:
    """Bytes of the forward and backward events, in order."""
    return [event.nbytes for event in walk.forward.events], [event.nbytes for event in walk.backward.events]


def by_component(phase: Phase, until: int | None = None) -> dict[Component, int]:
    """Bytes by component over the first `until` events of a stretch."""
    sums: dict[Component, int] = {}
    for label, nbytes in phase.composition(until).items():
        sums[label.component] = sums.get(label.component, 0) + nbytes
    return {component: nbytes for component, nbytes in sums.items() if nbytes}
