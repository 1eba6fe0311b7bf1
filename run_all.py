"""The command line: `python run_all.py VERB ...`, one verb a function. Results go to standard output, progress and
warnings to standard error. Exit status: 0 done, 1 done but something failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from suite.case import Case
from suite.environment import environment
from suite.flags import OneLineParser, add_case_flags, case_of
from suite.parse import SpecError, require

WORKER = "parallelism.worker"
RATE_SECONDS = 4.0  # of timing for each number of ranks


def bench(options: argparse.Namespace) -> int:
    """Run cases for real, record them, and lay the formulas beside what was measured."""
    from reports.export import run_mapping, write_report
    from reports.load import load_run
    from reports.summary import compare_run
    from reports.tables import print_run
    from suite.launch import Launcher
    from suite.progress import ConsoleProgress
    from suite.sweep import sweep

    if options.suite == "speed":
        return _speed(options)
    store, cases, predictor = _resumed(options) if options.resume else _started(options)
    launcher = Launcher(WORKER, timeout_s=options.timeout, hang_s=options.hang)
    try:
        with ConsoleProgress() as progress:
            sweep(cases, store, launcher, predictor, progress)
    except KeyboardInterrupt:
        print(f"interrupted; go on with: python run_all.py bench --resume {store.folder}", file=sys.stderr)
        return 130
    comparison = compare_run(load_run(store.folder))
    page, _ = write_report(comparison.run, store.folder)
    if options.json:
        print(json.dumps({"folder": str(store.folder), "page": str(page), **run_mapping(comparison)}))
    else:
        print_run(comparison, _console())
        print(f"\nrecords  {store.path}\npage     {page}")
    return 1 if comparison.unfinished else 0


def _started(options: argparse.Namespace) -> tuple[Any, tuple[Case, ...], Any]:
    """A new run: its cases checked, its data read once, this machine's matrix rates measured."""
    from reports.predict import Predictor
    from suite.cases import suite_of
    from suite.data import check_data
    from suite.parse import to_mapping
    from suite.store import RunRow, RunStore

    one = options.case or options.model or options.hf_config
    require(not (one and options.suite), f"--suite: {options.suite!r} given beside a case; give one of them")
    cases = (case_of(options),) if one else suite_of(options.suite or "default")
    for case in cases:
        check_data(case)
    rates = _measured_rates(cases)
    store = RunStore.create(Path(options.runs))
    facts = environment() | ({"matrix_rates": to_mapping(rates)} if rates else {})
    store.append(
        RunRow(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            suite="one case" if one else options.suite or "default",
            cases=tuple(case.to_mapping() for case in cases),
            command=("python", "run_all.py", *options.arguments),
            environment=facts,
        )
    )
    return store, cases, Predictor(rates)


def _resumed(options: argparse.Namespace) -> tuple[Any, tuple[Case, ...], Any]:
    """An earlier run, with the rates it was begun with: cases that have ended are not run again."""
    from reports.predict import Predictor
    from suite.case import case_from
    from suite.hardware.matrix_rate import MatrixRates
    from suite.store import RunRow, RunStore

    store = RunStore.open(Path(options.resume))
    rows = store.rows(RunRow)
    require(bool(rows), f"--resume: {options.resume!r} has no run row; start a new run")
    rates = rows[0].environment.get("matrix_rates")
    cases = tuple(case_from(case) for case in rows[0].cases)
    return store, cases, Predictor(MatrixRates.from_mapping(rates) if rates else None)


def _measured_rates(cases: Sequence[Case]) -> Any:
    """This machine's matrix rates for the products of these cases; None, with a warning, where that fails."""
    from reports.predict import product_shapes
    from suite.hardware import matmul_dtype
    from suite.hardware.matrix_rate import MatrixRateError, measure_matrix_rates

    local = [case for case in cases if case.cluster.device == "cpu"]
    if not local:
        return None
    ranks = sorted({case.layout.world_size for case in local})
    dtypes = sorted({matmul_dtype(case.workload.precision) for case in local})
    print(f"measuring this machine's matrix rates with {', '.join(map(str, ranks))} ranks ...", file=sys.stderr)
    try:
        return measure_matrix_rates(ranks, RATE_SECONDS, product_shapes(list(local)), dtypes)
    except MatrixRateError as error:
        print(f"no matrix rates, so no time estimates: {error}", file=sys.stderr)
        return None


def _speed(options: argparse.Namespace) -> int:
    raise SpecError("--suite: 'speed' is not here yet")


def estimate(options: argparse.Namespace) -> int:
    """Say what the formulas give for a case, with every term; nothing is run."""
    from reports.contract import estimate_mapping
    from reports.predict import Predictor

    case = case_of(options)
    if options.json:
        print(json.dumps(estimate_mapping(case, Predictor())))
        return 0
    from reports.answer import print_estimate

    print_estimate(case, Predictor(), _console(), explain=options.explain)
    return 0


def report(options: argparse.Namespace) -> int:
    """Write a run's page and summary again from its records."""
    from reports.export import run_mapping, write_report
    from reports.load import load_run
    from reports.summary import compare_run
    from reports.tables import print_run

    run = load_run(options.run)
    comparison = compare_run(run)
    folder = Path(options.run)
    page, summary = write_report(run, folder if folder.is_dir() else folder.parent)
    if options.json:
        print(json.dumps({"folder": str(page.parent), "page": str(page), **run_mapping(comparison)}))
    else:
        print_run(comparison, _console())
        print(f"\npage     {page}\nsummary  {summary}")
    return 0


def models(options: argparse.Namespace) -> int:
    """List the presets, and with --devices the devices, with their figures."""
    from reports.answer import device_rows, model_rows, print_rows

    rows = device_rows() if options.devices else model_rows()
    if options.json:
        print(json.dumps(rows))
    else:
        print_rows(rows, "devices" if options.devices else "models", _console())
    return 0


def _console() -> Any:
    from rich.console import Console

    return Console()


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="shardscope", description="Training layouts: measured, predicted, compared.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=OneLineParser)

    def verb(function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        text = (function.__doc__ or "").strip()
        added = verbs.add_parser(function.__name__, help=text, description=text, allow_abbrev=False)
        added.add_argument("--json", action="store_true", help="one JSON document on standard output")
        added.set_defaults(run_verb=function)
        return added

    run = verb(bench)
    run.add_argument("--suite", help="default, quick or speed (without --model, --case or --hf-config) [default]")
    run.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    run.add_argument("--runs", default="runs", metavar="FOLDER", help="where runs are kept [runs]")
    run.add_argument("--timeout", type=float, default=900.0, metavar="SECONDS", help="for one case [900]")
    run.add_argument("--hang", type=float, default=180.0, metavar="SECONDS", help="without a sign of life [180]")
    add_case_flags(run)
    said = verb(estimate)
    said.add_argument("--explain", action="store_true", help="every term of the largest moment, with its source")
    add_case_flags(said)
    verb(report).add_argument("run", help="a run's folder")
    verb(models).add_argument("--devices", action="store_true", help="list devices instead")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; bad input is one line on standard error and exit status 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parser = _parser()
        options = parser.parse_args(given)
        if options.verb is None:
            parser.print_help()
            return 2
        options.arguments = tuple(shlex.quote(word) for word in given)
        status: int = options.run_verb(options)
        sys.stdout.flush()
        return status
    except SpecError as error:
        print(f"shardscope: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone; there is nobody to tell
        sys.stderr.close()
        return 1
    except OSError as error:
        print(f"shardscope: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("shardscope: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
