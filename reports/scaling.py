"""Scaling: a case simulated at many values of one axis: GPUs (strong and weak scaling), sizes of its batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from memory.allocator_settings import AllocatorSettings
from memory.assessment import Assessment
from memory.estimate import MemoryModel
from memory.verdict import Verdict
from parallelism.simulator.machine import Simulator
from parallelism.simulator.simulation import Simulation
from suite.case import Case
from suite.hardware import device
from suite.layout import degrees
from suite.parse import SpecError, nearest, require, shown
from suite.units import bytes_text

#: GPUs that share a node where a case of one node does not say otherwise
NODE = 8
#: most points of a sweep
POINTS = 64
SIZES = ("micro_batch", "micro_batches", "seq_len")
GPUS = "gpus"
_RANGE = re.compile(r"(\w+)=(\d{1,9})\.\.(\d{1,9})", re.ASCII)
_LIST = re.compile(r"(\w+)=(\d{1,9}(?:,\d{1,9})*)", re.ASCII)


class Scaling(StrEnum):
    """What stays the same while GPUs are added."""

    STRONG = "strong"  # the global batch
    WEAK = "weak"  # each GPU's batch
    SIZE = "size"  # the GPUs: a size of the batch grows


@dataclass(frozen=True)
class Axis:
    """What is swept, over which values."""

    name: str
    values: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Axis:
        """Read 'gpus=8..16384' (doubling from the first) or 'seq_len=1024,3072'. SpecError names what would do."""
        match = _RANGE.fullmatch(text) or _LIST.fullmatch(text)
        if match is None:
            name = text.split("=")[0]
            require(name in (GPUS, *SIZES), f"--sweep: {shown(name)} is not known; {nearest(name, (GPUS, *SIZES))}")
            raise SpecError(f"--sweep: {shown(text)} is no range; write {name}=8..64, which doubles, or {name}=8,24,40")
        name = match[1]
        require(name in (GPUS, *SIZES), f"--sweep: {shown(name)} is not known; {nearest(name, (GPUS, *SIZES))}")
        values = tuple(_doubled(int(match[2]), int(match[3]))) if match.lastindex == 3 else _listed(match[2])
        require(
            bool(values), f"--sweep: {shown(text)} is empty; the first value must be at least 1, and not the larger"
        )
        require(len(values) <= POINTS, f"--sweep: {len(values)} values, at most {POINTS} are taken")
        return cls(name, values)


def _doubled(first: int, last: int) -> Iterator[int]:
    value = first
    while 1 <= value <= last:
        yield value
        value *= 2


def _listed(text: str) -> tuple[int, ...]:
    return tuple(sorted(set(map(int, text.split(","))) - {0}))


@dataclass(frozen=True)
class Point:
    """One value: its simulation, or the reason why there is none."""

    value: int
    case: Case | None = None
    simulation: Simulation | None = None
    reason: str = ""


@dataclass(frozen=True)
class Curve:
    """The points of one way of scaling; `reference` is the first that runs."""

    scaling: Scaling
    points: tuple[Point, ...]

    @property
    def run(self) -> tuple[Point, ...]:
        """Those that were simulated."""
        return tuple(point for point in self.points if point.simulation)

    @cached_property
    def reference(self) -> Point | None:
        """What the ideal is drawn from."""
        return next(iter(self.run), None)

    def ideal(self, point: Point) -> float | None:
        """Tokens/s if every GPU did what each does at the reference."""
        first = self.reference
        if first is None or first.simulation is None or self.scaling is Scaling.SIZE:
            return None
        return first.simulation.tokens_per_second * point.value / first.value

    def efficiency(self, point: Point) -> float | None:
        """Tokens/s over the ideal; None where a size grows, or nothing ran."""
        ideal = self.ideal(point)
        return point.simulation.tokens_per_second / ideal if ideal and point.simulation else None


@dataclass(frozen=True)
class Sweep:
    """A case over an axis. `grows` is the layout's axis that takes added GPUs, in nodes of `per_node`."""

    case: Case
    axis: Axis
    curves: tuple[Curve, ...]
    grows: str = ""
    per_node: int = 0


def sweep_case(case: Case, text: str, grow: str | None, simulator: Simulator) -> Sweep:
    """Simulate a case over an axis, given as `Axis.parse` reads it.

    Strong scaling keeps the case's global batch, weak scaling each rank's. Raises SpecError for an axis that is not
    known and for a sweep in which nothing runs, with the first reason.
    """
    axis = Axis.parse(text)
    if axis.name != GPUS:
        require(grow is None, f"--grow: given beside --sweep {axis.name}, which adds no GPUs; leave it out")
        sized = Curve(Scaling.SIZE, tuple(_point(value, _sized(case, axis.name), simulator) for value in axis.values))
        return _checked(Sweep(case, axis, (sized,)))
    grows = grow or ("fsdp" if case.layout.fsdp > 1 else "dp")
    require(grows in ("dp", "fsdp"), f"--grow: {shown(grows)} is not known; known: dp, fsdp")
    per_node = case.cluster.per_node if case.cluster.nodes > 1 else max(NODE, case.cluster.per_node)
    curves = tuple(
        Curve(kind, tuple(_point(value, _grown(case, grows, per_node, kind), simulator) for value in axis.values))
        for kind in (Scaling.STRONG, Scaling.WEAK)
    )
    return _checked(Sweep(case, axis, curves, grows, per_node))


def _checked(sweep: Sweep) -> Sweep:
    if not any(curve.run for curve in sweep.curves):
        first = sweep.curves[0].points[0]
        raise SpecError(f"--sweep: nothing runs at any {sweep.axis.name}; at {first.value}: {first.reason}")
    return sweep


def _point(value: int, build: Callable[[int], Case], simulator: Simulator) -> Point:
    try:
        case = build(value)
        reason = why_too_large(fate_of(case))
        return Point(value, case, None, reason) if reason is not None else Point(value, case, simulator(case))
    except SpecError as error:
        return Point(value, None, None, str(error))


def fate_of(case: Case) -> Assessment:
    """Whether a case fits its device."""
    return Assessment(MemoryModel(case), device(case.cluster.device), AllocatorSettings())


def why_too_large(fate: Assessment) -> str | None:
    """Why a case does not fit its device, as in 'does not fit: ...'; None where it does, or nobody knows."""
    if fate.verdict is not Verdict.OOM:
        return None
    return f"does not fit: peak {bytes_text(fate.peak_bytes)} of {bytes_text(fate.available_bytes)} a rank"


def _sized(case: Case, name: str) -> Callable[[int], Case]:
    """Value -> the case with one size of its batch so large."""

    def build(value: int) -> Case:
        sizes: dict[str, Any] = {name: value}
        return replace(case, workload=replace(case.workload, **sizes))

    return build


def _grown(case: Case, axis: str, per_node: int, scaling: Scaling) -> Callable[[int], Case]:
    """GPUs -> the case on so many."""

    def build(gpus: int) -> Case:
        layout, workload = case.layout, case.workload
        others = layout.world_size // getattr(layout, axis)
        require(gpus % others == 0, f"gpus: {gpus} is not a multiple of the other axes' {others} ({degrees(layout)})")
        degree: dict[str, Any] = {axis: gpus // others}
        grown = replace(layout, **degree)
        require(
            gpus < per_node or gpus % per_node == 0, f"gpus: {gpus} does not fill nodes of {per_node}; see --per-node"
        )
        each = workload.micro_batch * grown.data_ranks
        if scaling is Scaling.STRONG:
            batch = case.global_batch
            require(
                batch % each == 0,
                f"global batch: {batch} is not a multiple of micro_batch({workload.micro_batch})"
                f" * data ranks({grown.data_ranks}) = {each}",
            )
            workload = replace(workload, micro_batches=batch // each)
        cluster = replace(case.cluster, nodes=max(1, gpus // per_node), per_node=min(gpus, per_node))
        return replace(case, layout=grown, workload=workload, cluster=cluster)

    return build
