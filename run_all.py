"""The command line: `python run_all.py VERB ...`, one verb a function. Results go to standard output, progress and
warnings to standard error. Exit status: 0 done, 1 done but a case did not end well, 2 bad input, 130 interrupted."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reports.streams import abandon_output, open_streams, output, tell
from suite import flags
from suite.case import Case
from suite.parse import SpecError, require, shown, to_mapping

WORKER = "parallelism.worker"
PEERS = "peers"  # the suite whose cases other tools are asked about
RATE_SECONDS = 4.0  # of timing for each number of ranks
PROGRAM = "shardscope" if Path(sys.argv[0]).name == "shardscope" else f"python {shlex.quote(sys.argv[0])}"
STATUSES = "Exit status: 0 done, 1 done but a case did not end well, 2 bad input, 130 interrupted."


def bench(options: argparse.Namespace) -> int:
    """Run cases for real, record them, and lay the formulas beside what was measured."""
    from parallelism.peers.asking import record_answers
    from reports.load import load_run
    from suite.launch import Launcher
    from suite.machines import Machines
    from suite.progress import ConsoleProgress
    from suite.sweep import sweep

    if options.suite == "speed":
        return _speed(options)
    if options.emit is not None:
        return _emit(options)
    launcher = Launcher(WORKER, timeout_s=options.timeout, hang_s=options.hang)
    machines = Machines.parse(options.rdzv, options.node_rank)
    if machines.follows:
        return _follow(options, machines, launcher)
    begin = _started if options.resume is None else _resumed
    store, cases, predictor = begin(options, machines)
    try:
        with ConsoleProgress() as progress, machines.runner(cases, launcher, options.timeout) as runner:
            sweep(cases, store, runner, predictor, progress)
        record_answers(store, cases, tell)
    except (KeyboardInterrupt, OSError):
        tell(f"stopped; go on with: {PROGRAM} bench --resume {shlex.quote(str(store.folder))}")
        raise
    unfinished = _write_and_show(load_run(store.folder), store.folder, options.json)
    return 1 if unfinished else 0


def _started(options: argparse.Namespace, machines: Any) -> tuple[Any, tuple[Case, ...], Any]:
    """A new run: its cases checked, its data read once, this machine's matrix rates measured."""
    from reports.predict import Predictor
    from suite.environment import environment
    from suite.peers import Peer
    from suite.store import RunRow, RunStore

    bases, root = flags.given_bases(options), Path("runs" if options.runs is None else options.runs)
    require(not (bases and options.suite), f"--suite: {options.suite!r} given beside {' and '.join(bases)}; give one")
    cases = flags.cases_of(options)
    machines.check(cases)
    root.mkdir(parents=True, exist_ok=True)
    require(os.access(root, os.W_OK), f"--runs: {str(root)!r} cannot be written; name a folder that can")
    _check(cases)
    rates = _measured_rates(cases)
    store = RunStore.create(root)
    facts = environment() | ({"matrix_rates": to_mapping(rates)} if rates else {})
    store.append(
        RunRow(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            suite=flags.suite_name(options, len(cases)),
            cases=tuple(case.to_mapping() for case in cases),
            command=(*shlex.split(PROGRAM), *options.arguments),
            environment=facts,
            peers=tuple(Peer) if options.suite == PEERS else (),
        )
    )
    return store, cases, Predictor(rates)


def _check(cases: Iterable[Case]) -> None:
    """Refuse, before anything runs, devices that are not known and data that cannot be trained on."""
    from suite.data import check_data
    from suite.hardware import device

    for case in cases:
        device(case.cluster.device)
        check_data(case)


def _follow(options: argparse.Namespace, machines: Any, launcher: Any) -> int:
    """Run this machine's part of the cases that the recording machine calls."""
    from reports.load import load_run
    from suite.follow import follow, following

    resumed = () if options.resume is None else load_run(options.resume).results
    cases = {case.case_id: case for case in [result.case for result in resumed] or flags.cases_of(options)}
    machines.check(tuple(cases.values()))
    _check(cases.values())
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
    from suite.slurm import sbatch

    require(options.emit == "slurm", f"--emit: {shown(options.emit)} is not known; known: slurm")
    given = [flag for flag in ("resume", "rdzv", "node_rank") if getattr(options, flag) is not None]
    require(not given, f"--emit: given beside --{', --'.join(given).replace('_', '-')}; the file says where and what")
    require(options.suite != PEERS, "--emit: given beside --suite peers; the tools are asked by `bench --suite peers`")
    cases = flags.cases_of(options)
    _check(cases)
    kept = [] if options.runs is None else ["--runs", options.runs]
    command = [*shlex.split(PROGRAM), "bench", "--case", "-", "--timeout", f"{options.timeout:g}"]
    text = sbatch(cases, [*command, "--hang", f"{options.hang:g}", *kept], options.timeout)
    print(json.dumps({"emit": options.emit, "text": text}) if options.json else text, end="\n" if options.json else "")
    return 0


def _resumed(options: argparse.Namespace, machines: Any) -> tuple[Any, tuple[Case, ...], Any]:
    """An earlier run, with the rates it was begun with: cases that have ended are not run again."""
    from reports.load import load_run
    from reports.predict import Predictor
    from suite.hardware.matrix_rate import MatrixRates
    from suite.store import RunStore
    from suite.sweep import finished

    flags.refuse_beside(options, "--resume", "suite", "runs", why="a run goes on with its own cases")
    run = load_run(options.resume)
    store, rates = RunStore.open(Path(options.resume)), run.environment.get("matrix_rates")
    try:
        predictor = Predictor(MatrixRates.from_mapping(rates) if rates else None)
    except SpecError as error:
        raise SpecError(f"{store.path}: {error}") from None
    cases = tuple(result.case for result in run.results)
    done = finished(store)
    _check(case for case in cases if case.case_id not in done)
    machines.check(cases)
    return store, cases, predictor


def _measured_rates(cases: Sequence[Case]) -> Any:
    """This machine's matrix rates for the products of these cases; None, with a warning, where that fails."""
    from reports.predict import product_shapes
    from suite.hardware import matmul_dtype
    from suite.hardware.matrix_rate import MatrixRateError, measure_matrix_rates

    local = [case for case in cases if case.cluster.device == "cpu"]
    if not local:
        return None
    ranks = sorted({case.cluster.per_node for case in local})
    dtypes = sorted({matmul_dtype(case.workload.precision) for case in local})
    tell(f"measuring this machine's matrix rates (ranks at once: {', '.join(map(str, ranks))}) ...")
    try:
        return measure_matrix_rates(ranks, RATE_SECONDS, product_shapes(list(local)), dtypes)
    except MatrixRateError as error:
        tell(f"no matrix rates, so no time estimates: {error}")
        return None


def _speed(options: argparse.Namespace) -> int:
    """Our training step beside transformers' own, timed in a process of its own."""
    from suite.environment import ROOT

    why = "it has flags of its own: python -m parallelism.speed --help"
    flags.refuse_beside(options, "--suite speed", "resume", "runs", "rdzv", "node_rank", "emit", why=why)
    form = ["--json"] if options.json else []
    return subprocess.run([sys.executable, "-m", "parallelism.speed", *form], cwd=ROOT, check=False).returncode


def _write_and_show(run: Any, folder: Path, as_json: bool) -> int:
    """Write a run's page and summary, show it, and say how many of its cases did not end well."""
    from reports.export import run_mapping, write_report
    from reports.summary import compare_run

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


def estimate(options: argparse.Namespace) -> int:
    """Say what the formulas give for a case; nothing is run."""
    from reports.contract import estimate_mapping
    from reports.predict import Predictor

    case = flags.case_of(options)
    if options.json:
        print(json.dumps(estimate_mapping(case, Predictor()), allow_nan=False))
        return 0
    from reports.answer import print_estimate

    print_estimate(case, Predictor(), output(), explain=options.explain)
    return 0


def report(options: argparse.Namespace) -> int:
    """Write a run's page and summary again from its records."""
    from reports.load import load_run

    run, folder = load_run(options.run), Path(options.run)
    _write_and_show(run, folder if folder.is_dir() else folder.parent, options.json)
    return 0


def models(options: argparse.Namespace) -> int:
    """List the presets, and with --devices the devices, with their figures."""
    from reports.answer import device_rows, model_rows, print_rows

    rows = device_rows() if options.devices else model_rows()
    if options.json:
        print(json.dumps(rows, allow_nan=False))
    else:
        print_rows(rows, "devices" if options.devices else "models", output())
    return 0


def strategies(options: argparse.Namespace) -> int:
    """List the strategies: what each divides, sends, needs and combines with, and what is refused."""
    from reports.layouts import print_strategies, strategies_mapping

    answer = strategies_mapping()
    if options.json:
        print(json.dumps(answer, allow_nan=False))
    else:
        print_strategies(answer, output())
    return 0


def _parser() -> argparse.ArgumentParser:
    about = "Training layouts: measured, predicted, compared."
    parser = flags.OneLineParser(prog=PROGRAM, description=about, epilog=STATUSES, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=flags.OneLineParser)

    def verb(function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        text, name = (function.__doc__ or "").strip(), function.__name__
        usage = f"{PROGRAM} {name} {'RUN ' if function is report else ''}[flags]"
        added = verbs.add_parser(name, help=text, description=text, usage=usage, epilog=STATUSES, allow_abbrev=False)
        added.add_argument("--json", action="store_true", help="one JSON document on standard output")
        added.set_defaults(run_verb=function)
        return added

    run = verb(bench)
    run.add_argument(
        "--suite", metavar="NAME", help="default, quick, strategies, peers, speed; flags change its cases [default]"
    )
    run.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    run.add_argument("--runs", metavar="FOLDER", help="where runs are kept [runs]")
    seconds = flags.above_zero(float)
    run.add_argument("--timeout", type=seconds, default=900.0, metavar="SECONDS", help="that a case may take [900]")
    run.add_argument("--hang", type=seconds, default=180.0, metavar="SECONDS", help="of silence from all ranks [180]")
    run.add_argument("--rdzv", metavar="HOST:PORT", help="where several machines meet; the same command on each")
    run.add_argument("--node-rank", type=int, metavar="N", help="0 records, others follow [0 on HOST]")
    run.add_argument("--emit", metavar="slurm", help="print an sbatch file for the cases; run nothing")
    flags.add_case_flags(run)
    said = verb(estimate)
    said.add_argument("--explain", action="store_true", help="every term of the largest moment, with its source")
    flags.add_case_flags(said)
    verb(report).add_argument("run", metavar="RUN", help="a run's folder, or the records.jsonl in it")
    verb(strategies)
    verb(models).add_argument("--devices", action="store_true", help="list devices instead")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; bad input is one line on standard error and exit status 2."""
    open_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parser = _parser()
        options = parser.parse_args(given)
        if options.verb is None:
            parser.print_help(sys.stderr)
            return 2
        options.arguments = tuple(given)
        status: int = options.run_verb(options)
        sys.stdout.flush()
        return status
    except SpecError as error:
        tell(f"shardscope: {error}")
        return 2
    except BrokenPipeError:  # the reader of our output has gone; there is nobody to tell
        abandon_output()
        return 1
    except OSError as error:
        tell(f"shardscope: {f'{error.filename!r}: ' if error.filename else ''}{error.strerror or error}")
        abandon_output()
        return 2
    except KeyboardInterrupt:
        tell("shardscope: interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
