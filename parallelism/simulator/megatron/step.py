"""Seconds of a Megatron-LM step: in closed form for 1F1B, by the engine for every other plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallelism.megatron.run import MegatronRun
from parallelism.simulator.engine import run as run_graph
from parallelism.simulator.equal_stages import longest_span
from parallelism.simulator.megatron.orders import pipeline_layout, ranks_wait_for_all
from parallelism.simulator.megatron.plan import (
    DEFAULT,
    Options,
    Reduction,
    agree_seconds,
    finish_cost,
    stage_plans,
    step_plan,
)
from parallelism.simulator.megatron.timed import Machine
from parallelism.simulator.plan import StagePlan
from parallelism.simulator.program import program_of
from suite.layout import Schedule


@dataclass(frozen=True, slots=True)
class StagePass:
    """A stage's forward and backward seconds of one micro-batch, and those of a send to the next."""

    forward: float
    backward: float
    send: float = 0.0


def one_f_one_b_seconds(stages: Sequence[StagePass], micro_batches: int) -> float:
    """From the first forward pass to the last backward one: the way of one micro-batch down and up again, and a cycle
    for each other one.

    A cycle is the longest of: a stage's two passes; for each stage i the way down from it and up again, shared by the
    p - i micro-batches that it may have under way (where there are more of them than that). Equal stages without sends:
    (m + p - 1)(f + b), arXiv:2104.04473, section 2.2.1. Exact there and wherever one stage or one loop is always the
    slowest; up to 2 % above the engine's where they take turns.
    """
    span = sum(s.forward + s.backward for s in stages) + 2 * sum(s.send for s in stages[:-1])
    cycle = max(s.forward + s.backward for s in stages)
    loop = 0.0
    for under_way, stage in enumerate(reversed(stages), 1):
        loop += stage.forward + stage.backward + (2 * stage.send if under_way > 1 else 0.0)
        if micro_batches > under_way:
            cycle = max(cycle, loop / under_way)
    return span + (micro_batches - 1) * cycle


def megatron_step_seconds(run: MegatronRun, machine: Machine, options: Options = DEFAULT) -> float:
    """One optimizer step. SpecError for a schedule that is not planned."""
    is_loop = pipeline_layout(run).schedule is Schedule.ONE_F_ONE_B and ranks_wait_for_all(run)
    if options.reduction is not Reduction.AT_END or not is_loop:
        program = program_of(step_plan(run, machine, options))
        times = run_graph(program.graph, program.sharing)
        return times.total if ranks_wait_for_all(run) else longest_span(program, times)
    stages = stage_plans(run, machine, options)
    finish = max(
        max(cost.compute, cost.host) + sum(seconds for _, seconds in cost.blocking)
        for cost in (finish_cost(run, machine, place) for place in {0, run.pp - 1})
    )
    if run.pp == 1:
        whole = run.micro_batches * _unhidden(stages[0]) + _reduce(stages[0])
        return whole + agree_seconds(run, machine) + finish
    passes = [_passes(stage) for stage in stages]
    end = one_f_one_b_seconds(passes, run.micro_batches)
    reduced = []
    for stage, each in zip(stages, passes, strict=True):
        reduced.append(end + _reduce(stage))
        end -= each.backward + each.send  # the next stage's last gradient left that much earlier
    return max(reduced) + agree_seconds(run, machine) + finish


def _passes(stage: StagePlan) -> StagePass:
    forward = sum(unit.forward.seconds for unit in stage.units)
    backward = sum(unit.rerun.seconds + unit.backward.seconds for unit in stage.units)
    return StagePass(forward, backward, stage.send)


def _unhidden(stage: StagePlan) -> float:
    """A micro-batch without a pipeline: the slower of the device and the host that runs ahead of it."""
    costs = [cost for unit in stage.units for cost in (unit.forward, unit.rerun, unit.inputs, unit.weights)]
    return max(sum(cost.seconds for cost in costs), sum(cost.host for cost in costs))


def _reduce(stage: StagePlan) -> float:
    return sum(unit.reduce for unit in stage.units)
