"""What `plan` does: ranks every legal layout that fits, shows why, and hands the best over."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from reports.calibrated import calibration_given
from reports.plan.fronts import fronts_of
from reports.plan.given import asked_of
from reports.plan.mapping import plan_mapping
from reports.plan.solve import Solver
from reports.plan.text import plan_markdown, print_plan
from reports.plan.timing import timing_of
from reports.plan.worlds import best_of, merged, worlds_of
from reports.streams import output, tell
from suite.files import write_whole


def run_plan(options: argparse.Namespace) -> int:
    """Rank, show, write what files were asked for, run where asked; SpecError where nothing fits."""
    asked = asked_of(options)
    solver = Solver(timing_of(asked.base, calibration_given(options.calibration)))
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
    if options.json:
        print(json.dumps(plan_mapping(plan, fronts), allow_nan=False))
    else:
        print_plan(plan, fronts, output())
    return 0
