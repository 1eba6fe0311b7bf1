"""A plan in which one kind of work goes faster: what is asked of machines that were measured, not described."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from parallelism.simulator.plan import Cost, Part, StagePlan, StepPlan, Unit


def kinds_of(plan: StepPlan) -> Iterator[Part]:
    """The kinds of work that a plan has, of those that `faster` knows."""
    units = [unit for stage in plan.stages for unit in stage.units]
    costs = [*plan.finish, *(cost for unit in units for cost in _costs(unit))]
    blocking = {part for cost in costs for part, seconds in cost.blocking if seconds}
    found = {
        Part.COMPUTE: any(cost.compute for cost in costs),
        Part.HOST: any(cost.host for cost in costs),
        Part.GATHER: any(unit.gather for unit in units),
        Part.REDUCTION: any(unit.reduce for unit in units),
        Part.PIPELINE: any(stage.send for stage in plan.stages) and len(plan.orders) > 1,
        Part.NORM: bool(plan.agree),
    }
    return (part for part in Part if part in blocking or found.get(part))


def faster(plan: StepPlan, kind: Part, times: float) -> StepPlan:
    """The plan with one kind of work `times` as fast. Compute is all that the device does, rerun and update too."""

    def seconds(part: Part, value: float) -> float:
        return value / times if part is kind else value

    def cost(value: Cost) -> Cost:
        blocking = tuple((part, seconds(part, each)) for part, each in value.blocking)
        return Cost(seconds(Part.COMPUTE, value.compute), seconds(Part.HOST, value.host), blocking)

    def unit(value: Unit) -> Unit:
        forward, inputs, weights, rerun, *apart = map(cost, _costs(value))
        gather, reduce = seconds(Part.GATHER, value.gather), seconds(Part.REDUCTION, value.reduce)
        return replace(
            value, forward=forward, inputs=inputs, weights=weights, rerun=rerun, gather=gather, reduce=reduce,
            apart=(apart[0], apart[1]),
        )  # fmt: skip

    stages = tuple(
        StagePlan(tuple(map(unit, stage.units)), seconds(Part.PIPELINE, stage.send)) for stage in plan.stages
    )
    return replace(plan, stages=stages, finish=tuple(map(cost, plan.finish)), agree=seconds(Part.NORM, plan.agree))


def _costs(unit: Unit) -> tuple[Cost, ...]:
    return unit.forward, unit.inputs, unit.weights, unit.rerun, *unit.apart
