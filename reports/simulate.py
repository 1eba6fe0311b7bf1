"""The verb `simulate`: a step's time, where it goes, what more would buy; a trace, a page, a sweep where asked for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.text import Text

from parallelism.simulator.machine import Simulator
from parallelism.simulator.sensitivity import sensitivities
from parallelism.simulator.simulation import Simulation
from parallelism.simulator.simulators import simulator_of
from parallelism.simulator.stack import Execution
from parallelism.simulator.stragglers import meeting_of, seconds_of
from reports.calibrated import calibration_given
from reports.contract import fate_mapping
from reports.long_run import SimulatedStep, long_run_mapping
from reports.long_run_options import LongRunOptions, long_run_options
from reports.long_run_text import long_run_lines
from reports.scaling import Sweep, fate_of, sweep_case, why_too_large
from reports.scaling_text import print_sweep, sweep_mapping
from reports.simulation_text import print_simulation, sensitivity_mapping, simulation_mapping, term_rows
from reports.streams import output, tell
from reports.text import plain
from reports.trace_events import TRACE_LIMIT, write_trace
from suite.case import Case
from suite.files import write_whole
from suite.flags import member, trained_case_of
from suite.parse import require


def run_simulate(options: argparse.Namespace) -> int:
    """Answer, and write what files were asked for."""
    require(options.trace_limit is None or options.trace is not None, "--trace-limit: says nothing without --trace")
    require(options.grow is None or options.sweep is not None, "--grow: says nothing without --sweep gpus=A..B")
    execution = member(Execution, options.execution, "--execution")
    case, said = trained_case_of(options), long_run_options(options)
    simulator = simulator_of(case, calibration_given(options.calibration), execution)
    sweep = None if options.sweep is None else sweep_case(case, options.sweep, options.grow, simulator)
    if sweep is None or options.trace is not None or options.page is not None or said.given:
        _one(case, options, simulator, sweep, said)
    elif options.json:
        print(json.dumps({**_head(case), "sweep": sweep_mapping(sweep)}, allow_nan=False))
    else:
        print_sweep(sweep, output())
    return 0


def _one(
    case: Case, options: argparse.Namespace, simulator: Simulator, sweep: Sweep | None, said: LongRunOptions
) -> None:
    """The case itself, with its files and its long run; a sweep beside it."""
    simulation = simulator(case)
    run = long_run_mapping(said, case, _step(simulation))
    if options.trace is not None:
        write_trace(simulation, options.trace, options.trace_limit or TRACE_LIMIT)
        tell(f"wrote {options.trace}")
    found, fate = sensitivities(simulation, simulator), fate_of(case)
    if options.page is not None:
        from reports.simulation_page import render_simulation

        write_whole(Path(options.page), render_simulation(simulation, found, sweep, run))
        tell(f"wrote {options.page}")
    if options.json:
        answer = {
            **_head(case),
            "time": simulation_mapping(simulation),
            "sensitivities": [sensitivity_mapping(each) for each in found],
            "terms": term_rows(simulation),
            "memory": {"peak_bytes": fate.peak_bytes, **fate_mapping(fate)},
        }
        more = ({} if sweep is None else {"sweep": sweep_mapping(sweep)}) | ({} if run is None else {"long_run": run})
        print(json.dumps(answer | more, allow_nan=False))
        return
    print_simulation(simulation, found, output())
    if reason := why_too_large(fate):
        output().print(Text(plain(f"beware: the case {reason}")), style="bold")
    for line in long_run_lines(run):
        output().print(Text(plain(line)))
    if sweep is not None:
        print_sweep(sweep, output())


def _step(simulation: Simulation) -> SimulatedStep:
    """What a long run is made of."""
    plan = simulation.plan
    return SimulatedStep(simulation.step_seconds, seconds_of(plan), meeting_of(plan))


def _head(case: Case) -> dict[str, Any]:
    return {
        "case_id": case.case_id,
        "case": case.to_mapping(),
        "world_size": case.layout.world_size,
        "global_batch": case.global_batch,
    }
