"""Seconds of a Megatron-LM step: pass by pass for 1F1B, by the engine for every other plan."""

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
    """From the first forward pass to the last backward one, what the engine finds, without its graph.

    Equal stages without sends: (m + p - 1)(f + b), arXiv:2104.04473, section 2.2.1. Else stage by stage, each as far as
    what it waits for has come: p - 1 - i forward passes, a forward and a backward in turn, the backward ones left. What
    a stage sends, either way, goes out one after the other beside its passes.
    """
    count = len(stages)
    if len(set(stages)) == 1 and not stages[0].send:
        return (micro_batches + count - 1) * (stages[0].forward + stages[0].backward)
    line = [_Place(stage, min(micro_batches, count - 1 - place)) for place, stage in enumerate(stages)]
    line[0].activations = [0.0] * micro_batches
    edge = [stage.send for stage in stages]
    while line[0].backwards < micro_batches:
        for place, here in enumerate(line):
            while here.is_ready(micro_batches, is_last=place == count - 1):
                if here.is_forward(micro_batches):
                    end = here.forward()
                    if place < count - 1:
                        line[place + 1].activations.append(here.sent(end, edge[place]))
                else:
                    end = here.backward(is_last=place == count - 1)
                    if place:
                        line[place - 1].gradients.append(here.sent(end, edge[place - 1]))
    return line[0].now


class _Place:
    """A pipeline rank on its way through 1F1B: when it is free, and what has arrived when."""

    def __init__(self, stage: StagePass, warm_up: int) -> None:
        self.stage, self.warm_up = stage, warm_up
        self.now = self.link = 0.0
        self.forwards = self.backwards = 0
        self.activations: list[float] = []
        self.gradients: list[float] = []

    def is_forward(self, micro_batches: int) -> bool:
        """Is its next pass a forward one?"""
        return self.forwards < min(micro_batches, self.backwards + self.warm_up + 1)

    def is_ready(self, micro_batches: int, is_last: bool) -> bool:
        """Has what its next pass needs come?"""
        if self.is_forward(micro_batches):
            return len(self.activations) > self.forwards
        return self.backwards < micro_batches and (is_last or len(self.gradients) > self.backwards)

    def forward(self) -> float:
        """Run one; its end."""
        self.now = max(self.now, self.activations[self.forwards]) + self.stage.forward
        self.forwards += 1
        return self.now

    def backward(self, is_last: bool) -> float:
        """Run one; its end."""
        came = 0.0 if is_last else self.gradients[self.backwards]
        self.now = max(self.now, came) + self.stage.backward
        self.backwards += 1
        return self.now

    def sent(self, made: float, seconds: float) -> float:
        """When what was made arrives at the other end of its link."""
        self.link = max(self.link, made) + seconds
        return self.link


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
