"""What `plan` does: ranks every legal layout that fits, shows why, and hands the best over."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from reports.calibrated import calibration_given
from reports.plan.fronts import fronts_of
from reports.plan.given import asked_of
from reports.plan.mapping import plan_mapping
from reports.plan.run import LAUNCHES, Trial, check_run, print_trial, run_answers, trial_mapping
from reports.plan.solve import Plan, Solver
from reports.plan.text import plan_markdown, print_plan
from reports.plan.timing import timing_of
from reports.plan.worlds import best_of, merged, worlds_of
from reports.running import Running
from reports.streams import output, tell
from suite.files import write_whole

if TYPE_CHECKING:
    from suite.hardware.calibration import Calibration


def run_plan(options: argparse.Namespace) -> int:
    """Rank, show, write what files were asked for, run where asked; SpecError where nothing fits."""
    asked, calibration = asked_of(options), calibration_given(options.calibration)
    if options.run is not None:
        check_run(asked, options.run)
    solver = Solver(timing_of(asked.base, calibration))
    plans = best_of(solver, worlds_of(asked, options.max_gpus))
    plan = merged(plans)
    fronts = fronts_of(solver, asked, plan.answers[0]) if options.fronts else None
    if options.save is not None:
        write_whole(Path(options.save), json.dumps(plan.answers[0].case.to_mapping(), indent=1) + "\n")
        tell(f"wrote {options.save}; hand it over with: {options.program} export --case {options.save} --to TARGET")
    if options.markdown is not None:
        write_whole(Path(options.markdown), plan_markdown(plan, fronts))
        tell(f"wrote {options.markdown}")
    if options.page is not None:
        from reports.plan.page import render_plan

        write_whole(Path(options.page), render_plan(plan, fronts))
        tell(f"wrote {options.page}")
    said = plan_mapping(plan, fronts) if options.json else {}
    if not options.json:
        print_plan(plan, fronts, output())
    trial = _tried(options, plan, calibration)
    if options.json:
        print(json.dumps(said | ({"run": trial_mapping(trial)} if trial else {}), allow_nan=False))
    elif trial:
        print_trial(trial, output())
    return 1 if trial and trial.comparison.unfinished else 0


def _tried(options: argparse.Namespace, plan: Plan, calibration: Calibration | None) -> Trial | None:
    """The best layouts measured, where that was asked for."""
    if options.run is None:
        return None
    running = Running(options.program, options.arguments, options.runs, launches=LAUNCHES)
    return run_answers(plan, options.run, calibration, running)
