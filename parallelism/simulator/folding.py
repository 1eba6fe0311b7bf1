"""Plans with as few tasks as give the same times: what a unit waits for, and what it reruns, is one run with its kernels.

A search asks how long a step takes, not what of. So parts that follow each other on one queue become one, and plans
that differ in nothing but parts get one shape.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from parallelism.simulator.plan import Cost, StagePlan, StepPlan, Unit


@dataclass
class Folder:
    """Folds plans, each unit and stage that they share once."""

    units: dict[int, tuple[Unit, Unit]] = field(default_factory=dict)
    stages: dict[int, tuple[StagePlan, StagePlan, int]] = field(default_factory=dict)
    kinds: dict[Hashable, int] = field(default_factory=dict)
    """numbers of shapes of stages"""

    def plan(self, plan: StepPlan) -> tuple[StepPlan, Hashable]:
        """The plan folded, at the speed that its work has alone; and all but its orders that decides which tasks there
        are and what they wait for."""
        stages = [self._stage(stage) for stage in plan.stages]
        finish = tuple([_finish(cost) for cost in plan.finish])
        folded = replace(
            plan, stages=tuple([stage for _, stage, _ in stages]), finish=finish, slowdown=1.0, cores=None
        )  # fmt: skip
        rest = (plan.gathers, plan.reductions, plan.gathers_ahead, plan.keeps_after_forward, plan.reduces_each)
        return folded, (tuple([kind for _, _, kind in stages]), bool(plan.agree), rest)

    def _stage(self, stage: StagePlan) -> tuple[StagePlan, StagePlan, int]:
        """It is kept beside what comes of it, so that its identity stays its own."""
        found = self.stages.get(id(stage))
        if found is None:
            folded = StagePlan(tuple([self._unit(unit) for unit in stage.units]), stage.send)
            shape = pattern(folded), tuple(map(_kind, distinct(folded)))
            kind = self.kinds.setdefault(shape, len(self.kinds))
            found = self.stages[id(stage)] = stage, folded, kind
        return found

    def _unit(self, unit: Unit) -> Unit:
        found = self.units.get(id(unit))
        if found is None:
            found = self.units[id(unit)] = unit, folded_unit(unit)
        return found[1]


def folded_unit(unit: Unit) -> Unit:
    """Its rerun comes right before the gradients of its inputs, in either kind of backward pass."""
    inputs = Cost(unit.rerun.seconds + unit.inputs.seconds, unit.rerun.host + unit.inputs.host)
    return Unit(
        unit.name, _folded(unit.forward), inputs, _folded(unit.weights), gather=unit.gather, reduce=unit.reduce,
        is_kept=unit.is_kept,
    )  # fmt: skip


def _folded(cost: Cost) -> Cost:
    return Cost(cost.seconds, cost.host)


def _finish(cost: Cost) -> Cost:
    """An update's host is not ahead of it."""
    return Cost(max(cost.compute, cost.host) + cost.seconds - cost.compute)


def distinct(stage: StagePlan) -> list[Unit]:
    """A stage's units, equal ones (one object) once."""
    return list({id(unit): unit for unit in stage.units}.values())


def pattern(stage: StagePlan) -> tuple[int, ...]:
    """Which of them stands where."""
    numbers: dict[int, int] = {}
    return tuple([numbers.setdefault(id(unit), len(numbers)) for unit in stage.units])


def _kind(unit: Unit) -> Hashable:
    """Which of its tasks are there."""
    hosts = (bool(cost.host) for cost in (unit.forward, unit.inputs, unit.weights))
    return bool(unit.gather), bool(unit.reduce), unit.is_kept, *hosts
