"""What `bench` does: begins or resumes a run, has its cases run, records them, and shows what came of it."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memory import speed as estimate_speed
from reports import step_speed
from reports.calibrated import NONE, calibration_for, calibration_given, kept_calibration
from reports.compare import Run
from reports.export import run_mapping, write_report
from reports.load import load_run
from reports.predict import Predictor
from reports.running import Running, check_cases
from reports.streams import output, tell
from reports.summary import compare_run
from suite import flags
from suite.case import Case
from suite.cases import UNTIMED
from suite.environment import ROOT
from suite.follow import follow, following
from suite.machines import Machines
from suite.parse import require, shown, to_mapping
from suite.passes import Pass
from suite.peers import Peer
from suite.slurm import sbatch
from suite.store import RunStore
from suite.sweep import finished

if TYPE_CHECKING:
    from suite.hardware.calibration import Calibration

PLAN = "plan"  # the suite whose cases are chosen by their predicted times
PEERS = "peers"  # the suite whose cases other tools are asked about


def run_bench(options: argparse.Namespace) -> int:
    """Run the cases that the flags describe and show what came of them; the exit status."""
    if options.suite == "speed":
        return _speed(options)
    if options.suite == PLAN:
        why = "its cases are the layouts of its own questions, measured here"
        flags.refuse_beside(options, f"--suite {PLAN}", "passes", "rdzv", "node_rank", "emit", "resume", why=why)
    if options.emit is not None:
        return _emit(options)
    machines = Machines.parse(options.rdzv, options.node_rank)
    if machines.follows:
        return _follow(options, machines)
    begin = _started if options.resume is None else _resumed
    store, cases, predictor = begin(options, machines)
    _running(options).carry_out(store, cases, predictor, machines)
    unfinished = write_and_show(load_run(store.folder), store.folder, options.json)
    return 1 if unfinished else 0


def _running(options: argparse.Namespace) -> Running:
    """How the flags want cases to be run."""
    launches = options.launches or 1
    return Running(options.program, options.arguments, options.runs, options.timeout, options.hang, launches)


def _started(options: argparse.Namespace, machines: Machines) -> tuple[RunStore, tuple[Case, ...], Predictor]:
    """A new run: its cases checked, its data read once, this machine's operators measured."""
    if options.suite == PLAN:
        return _proof(options)
    bases = flags.given_bases(options)
    require(not (bases and options.suite), f"--suite: {options.suite!r} given beside {' and '.join(bases)}; give one")
    cases = flags.cases_of(options)
    passes = flags.passes_given(options, cases)
    machines.check(cases)
    _running(options).folder()
    check_cases(cases)
    given = "none" if options.calibration is None and options.suite in UNTIMED else options.calibration
    calibration = _calibration(cases, passes, given)
    peers = tuple(Peer) if options.suite == PEERS else ()
    store = _running(options).begin(cases, flags.suite_name(options, len(cases)), passes, calibration, peers)
    return store, cases, Predictor(calibration, passes)


def _proof(options: argparse.Namespace) -> tuple[RunStore, tuple[Case, ...], Predictor]:
    """The run that holds a plan's order to the times of real layouts: which they are depends on their predictions."""
    from reports.plan.choices import PASSES, proof_cases

    require(options.calibration != NONE, f"--calibration: {NONE}: layouts of --suite {PLAN} are chosen by their times")
    _running(options).folder()
    cases, calibration = proof_cases(options.calibration)
    check_cases(cases)
    return _running(options).begin(cases, PLAN, PASSES, calibration), cases, Predictor(calibration, PASSES)


def _calibration(cases: Sequence[Case], passes: Sequence[Pass], path: str | None) -> Calibration | None:
    """What times rest on: measured now for cases whose times are, else what a file holds."""
    return calibration_for(cases, path) if {Pass.TRAIN, Pass.SERVE} & set(passes) else calibration_given(path)


def _follow(options: argparse.Namespace, machines: Machines) -> int:
    """Run this machine's part of the cases that the recording machine calls."""
    resumed = () if options.resume is None else load_run(options.resume).results
    cases = {case.case_id: case for case in [result.case for result in resumed] or flags.cases_of(options)}
    launcher = _running(options).launcher(flags.passes_given(options, tuple(cases.values())))
    machines.check(tuple(cases.values()))
    check_cases(cases.values())
    assert machines.endpoint is not None  # it follows
    where = str(machines.endpoint)
    with following(machines.endpoint, cases, options.timeout) as (link, node, nodes):
        tell(f"node {node} of {nodes}: runs its part; {where} records")
        try:
            done = follow(launcher, link, cases, tell)
        except ConnectionError as error:
            tell(f"{where} has gone ({error}); the ranks here were ended")
            return 1
    if options.json:
        print(json.dumps({"recorded_at": where, "node": node, "nodes": nodes, "parts": to_mapping(done)}))
    return 1 if any(part.code != 0 for part in done) else 0


def _emit(options: argparse.Namespace) -> int:
    """Print the sbatch file that runs these cases."""
    require(options.emit == "slurm", f"--emit: {shown(options.emit)} is not known; known: slurm")
    given = [
        flag for flag in ("resume", "rdzv", "node_rank", "passes", "calibration") if getattr(options, flag) is not None
    ]
    require(not given, f"--emit: given beside --{', --'.join(given).replace('_', '-')}; the file says where and what")
    require(options.suite != PEERS, "--emit: given beside --suite peers; the tools are asked by `bench --suite peers`")
    cases = flags.cases_of(options)
    check_cases(cases)
    kept = [] if options.runs is None else ["--runs", options.runs]
    command = [*shlex.split(options.program), "bench", "--case", "-", "--timeout", f"{options.timeout:g}"]
    kept += [] if options.launches is None else ["--launches", str(options.launches)]
    text = sbatch(cases, [*command, "--hang", f"{options.hang:g}", *kept], options.timeout)
    print(json.dumps({"emit": options.emit, "text": text}) if options.json else text, end="\n" if options.json else "")
    return 0


def _resumed(options: argparse.Namespace, machines: Machines) -> tuple[RunStore, tuple[Case, ...], Predictor]:
    """An earlier run, with the calibration it was begun with: cases that have ended are not run again."""
    kept = ("suite", "runs", "passes", "calibration", "launches")
    flags.refuse_beside(options, "--resume", *kept, why="a run goes on with its own cases")
    run = load_run(options.resume)
    store = RunStore.open(Path(options.resume))
    predictor = Predictor(kept_calibration(store.folder), run.passes)
    cases = tuple(result.case for result in run.results)
    done = finished(store)
    check_cases(case for case in cases if case.case_id not in done)
    machines.check(cases)
    return store, cases, predictor


def _speed(options: argparse.Namespace) -> int:
    """How long estimates and step times take; our training step beside transformers' own, in a process of its own."""
    why = "it has flags of its own: python -m parallelism.speed --help"
    flags.refuse_beside(options, "--suite speed", "resume", "runs", "rdzv", "node_rank", "emit", why=why)
    estimates, steps = estimate_speed.measure(), step_speed.measure()
    race = [sys.executable, "-m", "parallelism.speed"]
    if not options.json:
        print("\n".join([*estimate_speed.lines(estimates), *step_speed.lines(steps)]), flush=True)
        return subprocess.run(race, cwd=ROOT, check=False).returncode
    done = subprocess.run([*race, "--json"], cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    if not done.returncode:
        print(json.dumps({**json.loads(done.stdout), "estimates": to_mapping(estimates), "steps": to_mapping(steps)}))
    return done.returncode


def write_and_show(run: Run, folder: Path, as_json: bool) -> int:
    """Write a run's page and summary, show it, and say how many of its cases did not end well."""
    comparison = compare_run(run)
    page, summary = write_report(run, folder)
    if as_json:
        said = to_mapping({"folder": str(folder), "page": str(page), **run_mapping(comparison)})  # a loss may be nan
        print(json.dumps(said, allow_nan=False))
    else:
        from reports.peers_text import print_peers
        from reports.tables import print_run

        print_run(comparison, output())
        print_peers(comparison, output())
        print(f"\npage     {page}\nsummary  {summary}")
    return len(comparison.unfinished)
