"""The long run beside a simulated step: slow ranks, goodput, checkpoint intervals, how long it takes and what it costs.

`long_run_mapping` answers with JSON-ready figures, `long_run_lines` says them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from memory.estimate import MemoryModel
from memory.state import holdings
from parallelism.simulator.checkpoints import best_interval, daly_interval, young_interval
from parallelism.simulator.cost import bill, watts_of
from parallelism.simulator.failures import Reliability
from parallelism.simulator.goodput import goodput, lost_work_s, shares
from parallelism.simulator.jitter import Jitter
from parallelism.simulator.long_run import Spread, lives
from parallelism.simulator.stragglers import (
    Meeting,
    StepSeconds,
    expected_seconds,
    jittered_seconds,
    step_seconds,
)
from reports.long_run_options import DAY_S, SEEDS, LongRunOptions
from suite.case import Case
from suite.hardware import device
from suite.layout import Layout
from suite.parse import SpecError, require, to_mapping
from suite.record import Component

_CHECKPOINTED = (Component.PARAMETERS, Component.OPTIMIZER)


@dataclass(frozen=True)
class SimulatedStep:
    """What the long run is made of: a step's seconds, and how they change with the pace of the pipeline's ranks.

    `seconds_of` takes a factor for each pipeline rank; it is needed for slow ranks and jitter alone.
    """

    seconds: float
    seconds_of: StepSeconds | None = None
    meeting: Meeting = Meeting.ONCE


def long_run_mapping(options: LongRunOptions, case: Case, step: SimulatedStep) -> dict[str, Any] | None:
    """`stragglers`, `failures` and `run`, each where something was said of it; None where nothing was.

    SpecError for options that do not fit the case or one another.
    """
    if not options.given:
        return None
    answer: dict[str, Any] = {}
    seconds = step.seconds
    if options.slow or options.jitter is not None:
        answer["stragglers"] = _stragglers(options, case, step)
        seconds = answer["stragglers"]["step_seconds"]
    useful = 1.0
    if options.has_failures:
        answer["failures"] = _failures(options, case, seconds)
        useful = answer["failures"]["goodput"]
    if options.tokens is not None or options.days is not None:
        answer["run"] = _run(options, case, seconds, useful, answer.get("failures"))
    return answer


def checkpoint_bytes(case: Case) -> int | None:
    """Bytes of a checkpoint that training can go on from: the whole model's parameters and optimizer state, once.

    Not counted: the data's place and random states. None under DeepSpeed, whose files hold other copies.
    """
    if case.layout.is_deepspeed:
        return None
    alone = replace(case, layout=Layout(), cluster=replace(case.cluster, nodes=1, per_node=1))
    held = holdings(alone, MemoryModel(alone).ledger, 0)
    return sum(item.nbytes for item in held if item.component in _CHECKPOINTED)


def _stragglers(options: LongRunOptions, case: Case, step: SimulatedStep) -> dict[str, Any]:
    seconds, layout = step.seconds_of, case.layout
    if seconds is None:
        given = "--slow" if options.slow else "--jitter"
        raise SpecError(f"{given}: this step was not simulated queue by queue; slow ranks have nothing to slow down")
    jitter, spread = Jitter(options.jitter or 0.0), None
    found = step_seconds(seconds, layout, options.slow, step.meeting)
    if jitter.sigma and layout.pp == 1:
        found = expected_seconds(seconds, layout, options.slow, jitter)
    elif jitter.sigma:
        spread = jittered_seconds(seconds, layout, options.slow, jitter, step.meeting)
        found = spread.mean
    return {
        "step_seconds": found,
        "step_seconds_alike": step.seconds,
        "slowdown": found / step.seconds,
        "slow": [str(item) for item in options.slow],
        "jitter": to_mapping(jitter) if jitter.sigma else None,
        "step_seconds_spread": to_mapping(spread) if spread else None,
    }


def _failures(options: LongRunOptions, case: Case, seconds: float) -> dict[str, Any]:
    nbytes = checkpoint_bytes(case) if options.checkpoint_gib_per_s is not None else None
    run = options.reliability(case.layout.world_size, nbytes)
    work = _work_s(options, case, seconds)
    longest = min(work or math.inf, math.inf if options.days is None else options.days * DAY_S)
    best = best_interval(run, min(seconds, longest), longest)
    chosen = best if options.checkpoint_every_s is None else options.checkpoint_every_s
    require(chosen <= longest, f"--checkpoint-every-s: {chosen:g} s are longer than the run of {longest:g} s")
    saving, mtbf = run.checkpoint.blocking_s, run.failures.mtbf_s
    intervals = {"best": best, "young": young_interval(saving, mtbf), "daly": daly_interval(saving, mtbf)}
    if options.checkpoint_every_s is not None:
        intervals["given"] = chosen
    useful = goodput(run, chosen)
    if work is None and options.days is not None:
        work = max(chosen, options.days * DAY_S * useful)
    spread = None
    if work is not None:
        lived = lives(run, chosen, work, options.seeds or SEEDS)
        spread = Spread.of(life.goodput for life in lived)
    return {
        "reliability": to_mapping(run),
        "checkpoint_bytes": nbytes,
        "mtbf_seconds": mtbf,
        "interval_seconds": chosen,
        "interval_steps": max(1, round(chosen / seconds)),
        "goodput": useful,
        "shares": to_mapping(shares(run, chosen)),
        "lost_seconds_a_failure": lost_work_s(run, chosen),
        "intervals": {name: _interval(run, value) for name, value in intervals.items()},
        "goodput_over_seeds": to_mapping(spread) if spread else None,
    }


def _interval(run: Reliability, seconds: float) -> dict[str, float | None]:
    """An interval with its goodput; None for one that a checkpoint's writing does not fit into."""
    least = run.checkpoint.writing_s - run.checkpoint.blocking_s
    fits = seconds > 0 and seconds >= least
    return {"interval_seconds": seconds, "goodput": goodput(run, seconds) if fits else None}


def _run(
    options: LongRunOptions, case: Case, seconds: float, useful: float, failures: dict[str, Any] | None
) -> dict[str, Any]:
    work = _work_s(options, case, seconds)
    wall = options.days * DAY_S if options.days is not None else (work or 0.0) / useful
    steps = math.ceil(work / seconds - 1e-9) if work is not None else int(wall * useful / seconds)
    devices = case.layout.world_size + (options.spares or 0)
    watts, source = watts_of(device(case.cluster.device))
    rates = options.rates(watts, source)
    taken = bill(devices, wall, rates)
    expected = failures and wall * (1 - failures["shares"]["waiting"]) / failures["mtbf_seconds"]
    return {
        "wall_seconds": wall,
        "steps": steps,
        "tokens": steps * case.tokens_per_step,
        "goodput": useful,
        "failures": expected,
        "devices": devices,
        "device_hours": taken.device_hours,
        "price": taken.price,
        "energy_joules": taken.energy_j,
        "carbon_kg": taken.carbon_kg,
        "rates": to_mapping(rates),
    }


def _work_s(options: LongRunOptions, case: Case, seconds: float) -> float | None:
    """Seconds of steps that the tokens need."""
    if options.tokens is None:
        return None
    return math.ceil(options.tokens / case.tokens_per_step) * seconds
