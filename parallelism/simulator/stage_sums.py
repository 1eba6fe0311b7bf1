"""A stage's times as a row of numbers: what each of its units takes, and what all of them take in one run."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import sub

from parallelism.schedules.orders import Pass
from parallelism.simulator.plan import Cost, StagePlan, StepPlan, Unit

KINDS = tuple(Pass)
#: numbers of a run of units in one pass: seconds on the device, on the host, and from when the host begins, the device
#: being free, to the last kernel's end
RUN = 3
#: numbers of a unit: device and host in each kind of pass, its gather, its reduction
GATHER, REDUCE, UNIT = 2 * len(KINDS), 2 * len(KINDS) + 1, 2 * len(KINDS) + 2
#: a row: what it sends, the runs, the distinct units
RUNS, UNITS = 1, 1 + RUN * len(KINDS)


@dataclass(frozen=True, eq=False)
class StageSums:
    """`row`: the numbers; `kind`: a number that stages have in common whose tasks are the same, but for their times.

    Stages that gather or reduce are told apart by their units; of others one run is like another.
    """

    row: tuple[float, ...]
    kind: int


@dataclass(frozen=True)
class UnitKind:
    """Which tasks a unit has."""

    column: int
    """where its numbers start in the stage's row"""
    gathers: bool
    reduces: bool
    is_kept: bool


@dataclass
class Sums:
    """Adds stages up, each that plans share once. It keeps what it has seen, so that an identity stays one's own."""

    stages: dict[int, tuple[StagePlan, StageSums]] = field(default_factory=dict)
    numbers: dict[Hashable, int] = field(default_factory=dict)
    kinds: list[tuple[UnitKind, ...]] = field(default_factory=list)
    """of each number: the units of a stage that gathers or reduces, of the others none"""

    def of(self, stage: StagePlan) -> StageSums:
        """Of one stage."""
        found = self.stages.get(id(stage))
        if found is None:
            found = self.stages[id(stage)] = stage, self._added(stage)
        return found[1]

    def _added(self, stage: StagePlan) -> StageSums:
        distinct = {id(unit): unit for unit in stage.units}
        rows = {name: _unit_row(unit) for name, unit in distinct.items()}
        row = [stage.send]
        line = [rows[id(unit)] for unit in stage.units]
        for place, kind in enumerate(KINDS):
            costs = [(each[2 * place], each[2 * place + 1]) for each in line]
            row += _run(costs if kind is Pass.FORWARD else costs[::-1])
        for each in rows.values():
            row += each
        pattern = {name: UNITS + UNIT * place for place, name in enumerate(distinct)}
        units = tuple(
            [UnitKind(pattern[id(unit)], bool(unit.gather), bool(unit.reduce), unit.is_kept) for unit in stage.units]
        )
        units = units if any(unit.gathers or unit.reduces for unit in units) else ()
        number = self.numbers.setdefault(units, len(self.numbers))
        if number == len(self.kinds):
            self.kinds.append(units)
        return StageSums(tuple(row if units else row[:UNITS]), number)


def _unit_row(unit: Unit) -> list[float]:
    """What is rerun comes right before the gradients of inputs, in either kind of backward pass."""
    more_inputs, more_weights = unit.apart
    by_kind = {
        Pass.FORWARD: _all(unit.forward),
        Pass.BACKWARD: _all(unit.rerun, unit.inputs, unit.weights),
        Pass.INPUT: _all(unit.rerun, unit.inputs, more_inputs),
        Pass.WEIGHT: _all(unit.weights, more_weights),
    }
    return [*(seconds for kind in KINDS for seconds in by_kind[kind]), unit.gather, unit.reduce]


def _all(*costs: Cost) -> tuple[float, float]:
    return sum(cost.seconds for cost in costs), sum(cost.host for cost in costs)


def _run(costs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Of units one after the other: each starts once the host is through with the one before."""
    *before, device = accumulate([cost[0] for cost in costs], initial=0.0)
    *issued, host = accumulate([cost[1] for cost in costs], initial=0.0)
    return device, host, max(map(sub, issued, before)) + device


def finish_seconds(plan: StepPlan) -> list[float]:
    """Of each place's update, whose host is not ahead of it."""
    return [max(cost.compute, cost.host) + cost.seconds - cost.compute for cost in plan.finish]
