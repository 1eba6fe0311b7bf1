"""What more of each resource would buy: the step simulated again with that resource alone changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from parallelism.schedules.orders import Action, order_of
from parallelism.simulator.machine import Machine, Simulator
from parallelism.simulator.many import Candidate, step_seconds_of
from parallelism.simulator.plan import StepPlan
from parallelism.simulator.plan_changes import faster, kinds_of
from parallelism.simulator.simulation import Simulation
from suite.case import Case
from suite.hardware.curve import Curve
from suite.hardware.device import Figure, MatmulDtype, MatmulRates
from suite.hardware.fabric import Fabric, Level
from suite.parse import SpecError

#: of a resource, for each sensitivity
MORE = 1.1
LARGER, FASTER = "10 % more", "10 % faster"
#: tasks of a step that is simulated again for each of them: a fifth of a second
RUN_WHOLE = 20_000


@dataclass(frozen=True)
class Sensitivity:
    """What a change buys: `gain` is the share by which tokens/s grow, 0 where the resource bounds nothing."""

    resource: str
    change: str
    step_seconds: float
    gain: float


def sensitivities(before: Simulation, simulator: Simulator) -> tuple[Sensitivity, ...]:
    """What each resource buys a step that `simulator` has simulated, and one more micro-batch; most first.

    Resources are those that the machine has figures for; of a measured one, each kind of work that the plan has. Steps
    of more than RUN_WHOLE tasks are not simulated again: see `_quickly`.
    """
    case, machine = before.case, simulator.machine_of(before.case)
    asked: list[_Question] = []
    if machine is None:
        for kind in kinds_of(before.plan):
            asked.append(_Question(kind.value.replace("_", " "), FASTER, case, faster(before.plan, kind, MORE)))
    else:
        for resource, change, other in _changes(case, machine):
            asked.append(_Question(resource, change, case, simulator.plan_of(case, other), other))
    more = one_more_micro_batch(case)
    if more is not None:
        change = f"{case.workload.micro_batches} to {more.workload.micro_batches}"
        asked.append(_Question("micro-batches a step", change, more, simulator.plan_of(more, machine), machine))
    is_short = len(before.program.graph) <= RUN_WHOLE
    found = _whole(before, simulator, asked) if is_short else _quickly(before, simulator, asked)
    return tuple(sorted(found, key=lambda each: -each.gain))


@dataclass(frozen=True)
class _Question:
    """A change, and the plan that comes of it."""

    resource: str
    change: str
    case: Case
    plan: StepPlan
    machine: Machine | None = None

    def answer(self, before: Simulation, step_seconds: float) -> Sensitivity:
        """With the step that the change makes."""
        tokens_per_second = self.case.tokens_per_step / step_seconds
        return Sensitivity(self.resource, self.change, step_seconds, tokens_per_second / before.tokens_per_second - 1)


def _whole(before: Simulation, simulator: Simulator, asked: Sequence[_Question]) -> list[Sensitivity]:
    """Each change's step simulated."""
    return [each.answer(before, simulator.run(each.case, each.plan, each.machine).step_seconds) for each in asked]


def _quickly(before: Simulation, simulator: Simulator, asked: Sequence[_Question]) -> list[Sensitivity]:
    """All steps worked out together, without what queues that share something do to each other: of each, by what share
    it differs from the step before. Where that very slow-down changes, the step is simulated."""
    slowdown, layout = before.plan.slowdown, before.case.layout

    @cache
    def orders(micro_batches: int) -> tuple[tuple[Action, ...], ...]:
        return tuple(order_of(layout, micro_batches, place) for place in range(layout.pp))

    plans = [(before.case, before.plan), *((each.case, each.plan) for each in asked)]
    first, *others = step_seconds_of([Candidate(plan, case.workload.micro_batches, orders) for case, plan in plans])
    return [
        each.answer(before, before.step_seconds * seconds / first)
        if each.plan.slowdown == slowdown
        else _whole(before, simulator, [each])[0]
        for each, seconds in zip(asked, others, strict=True)
    ]


def one_more_micro_batch(case: Case) -> Case | None:
    """The case with the next number of micro-batches that its schedule takes: one more, or one more for each pipeline
    rank; None where neither will do."""
    for step in (1, case.layout.pp):
        try:
            return replace(case, workload=replace(case.workload, micro_batches=case.workload.micro_batches + step))
        except SpecError:
            continue
    return None


def _changes(case: Case, machine: Machine) -> Iterator[tuple[str, str, Machine]]:
    """(Resource, what is done to it, the machine that comes of it) each. A datasheet's figures stand in for speeds that
    were not measured, so they change with them."""
    device, speeds, fabric = machine.device, machine.speeds, machine.fabric
    rates = {dtype: _scaled(curve) for dtype, curve in speeds.matmul.items()}
    peaks: dict[str, Any] = {
        name: _scaled_rates(getattr(device, name)) for name in ("peak_flops_per_second", "achieved_flops_per_second")
    }
    yield "matrix rate", LARGER, Machine(replace(device, **peaks), replace(speeds, matmul=rates), fabric)
    if speeds.attention:
        rates = {dtype: _scaled(curve) for dtype, curve in speeds.attention.items()}
        yield "attention rate", LARGER, Machine(device, replace(speeds, attention=rates), fabric)
    wider = replace(device, memory_bandwidth_bytes_per_second=_scaled_figure(device.memory_bandwidth_bytes_per_second))
    curve = None if speeds.memory is None else _scaled(speeds.memory)
    yield "memory bandwidth", LARGER, Machine(wider, replace(speeds, memory=curve), fabric)
    if speeds.launch_s:
        yield "kernel launches", FASTER, Machine(device, replace(speeds, launch_s=speeds.launch_s / MORE), fabric)
    if speeds.host_s:
        yield "host", FASTER, Machine(device, replace(speeds, host_s=speeds.host_s / MORE), fabric)
    if speeds.slowdown > 1:
        milder = replace(speeds, slowdown=1 + (speeds.slowdown - 1) / MORE)
        yield "slow-down beside communication", "10 % milder", Machine(device, milder, fabric)
    for place in machine.levels_of(case):
        level = fabric.levels[place]
        faster_link = replace(level, bytes_per_second=level.bytes_per_second * MORE)
        yield f"{level.name} bandwidth", LARGER, Machine(device, speeds, _with(fabric, place, faster_link))
        if level.latency_s:
            quicker = replace(level, latency_s=level.latency_s / MORE)
            yield f"{level.name} latency", FASTER, Machine(device, speeds, _with(fabric, place, quicker))


def _scaled(curve: Curve) -> Curve:
    return replace(curve, values=tuple(value * MORE for value in curve.values))


def _scaled_figure(figure: Figure) -> Figure:
    return figure if figure.value is None else replace(figure, value=figure.value * MORE)


def _scaled_rates(rates: MatmulRates) -> MatmulRates:
    return MatmulRates(**{dtype.value: _scaled_figure(rates.of(dtype)) for dtype in MatmulDtype})


def _with(fabric: Fabric, place: int, level: Level) -> Fabric:
    return replace(fabric, levels=(*fabric.levels[:place], level, *fabric.levels[place + 1 :]))
