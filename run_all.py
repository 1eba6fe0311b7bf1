"""The command line: `python run_all.py VERB ...`, one verb a function. Results go to standard output, progress and
warnings to standard error. Exit status: 0 done, 1 done but a case did not end well, 2 bad input, 130 interrupted."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from reports.handover.verb import add_export_flags, run_export
from reports.history.verb import add_report_flags, run_report
from reports.intake.verb import add_import_flags, run_import
from reports.kv.flags import add_kv_flags
from reports.long_run_options import add_long_run_flags
from reports.plan.given import add_plan_flags
from reports.regress.verb import add_compare_flags, run_compare
from reports.streams import abandon_output, open_streams, output, tell
from suite import flags
from suite.case import Case
from suite.files import write_whole
from suite.parse import SpecError, require, shown

_OPERANDS = {
    "report": "RUN | --history FOLDER ",
    "validate": "TABLE.csv ... ",
    "compare": "RUN ... ",
    "import": "FILE ",
}  # of verbs that take some, as their usage shows them
ALLOC_CONF = "as PYTORCH_CUDA_ALLOC_CONF: expandable_segments:True, max_split_size_mb:N, or both"
CALIBRATION = "of this machine, as `calibrate` writes it: what times on the cpu rest on"
PROGRAM = "shardscope" if Path(sys.argv[0]).name == "shardscope" else f"python {shlex.quote(sys.argv[0])}"
STATUSES = "Exit status: 0 done, 1 done but a case did not end well, 2 bad input, 130 interrupted."


def bench(options: argparse.Namespace) -> int:
    """Run cases for real, record them, and lay the formulas beside what was measured."""
    from reports.bench import run_bench

    return run_bench(options)


def calibrate(options: argparse.Namespace) -> int:
    """Measure this machine: operators, matrix products, memory, collectives, overheads; written as one file."""
    from reports.calibrate import run_calibrate

    return run_calibrate(options)


def estimate(options: argparse.Namespace) -> int:
    """Say what the formulas give for a case; nothing is run."""
    from reports.calibrated import calibration_given
    from reports.contract import estimate_mapping
    from reports.predict import Predictor

    case = flags.case_of(options)
    if case.serves:
        return _serve(case, options)
    predictor = Predictor(calibration_given(options.calibration))
    if options.json:
        print(json.dumps(estimate_mapping(case, predictor, options.alloc_conf), allow_nan=False))
        return 0
    from reports.answer import print_estimate

    print_estimate(case, predictor, output(), options.explain, options.alloc_conf)
    return 0


def fit(options: argparse.Namespace) -> int:
    """Say what fits: the largest micro-batch, the longest sequence, the fewest GPUs, the least recomputation."""
    from reports.fit import print_fit, said_fit

    case = flags.trained_case_of(options)
    said = said_fit(case, options.target, options.accept, options.alloc_conf)
    if options.json:
        print(json.dumps(said, allow_nan=False))
    else:
        print_fit(said, case.label, output())
    return 0 if all(answer["best"] for answer in said["answers"]) else 1


def simulate(options: argparse.Namespace) -> int:
    """Say how long a step takes, where it goes and what more would buy; draw it, sweep it; nothing is run."""
    from reports.simulate import run_simulate

    return run_simulate(options)


def kv(options: argparse.Namespace) -> int:
    """Say what serving takes: cache a token, largest batch, longest context, time per token; compare choices."""
    from reports.kv.verb import run_kv

    return run_kv(options)


def plan(options: argparse.Namespace) -> int:
    """Rank every legal layout of a model on a cluster: which fit, which is fastest, why; what to launch."""
    from reports.plan.verb import run_plan

    return run_plan(options)


def export(options: argparse.Namespace) -> int:
    """Hand a case over: as DeepSpeed, torchtitan, Megatron, accelerate, torchrun or Slurm have it."""
    return run_export(options)


def import_(options: argparse.Namespace) -> int:
    """Take in what another tool wrote: a configuration becomes a Case, a snapshot or trace a measurement."""
    return run_import(options)


def compare(options: argparse.Namespace) -> int:
    """Lay two runs side by side, or with --strategies the layouts of one: better, worse, same or noisy."""
    return run_compare(options)


def _serve(case: Case, options: argparse.Namespace) -> int:
    """What the case's model needs to answer."""
    from reports.inference import inference_mapping, print_inference

    require(not options.explain, "--explain: given beside --new-tokens, which lists every term; leave it out")
    if options.json:
        print(json.dumps(inference_mapping(case), allow_nan=False))
    else:
        print_inference(case, output())
    return 0


def trace(options: argparse.Namespace) -> int:
    """Run a case's own code on fake tensors, any rank of any world, and lay the formulas beside what it allocates."""
    from reports.tracing import print_traces, trace_ranks, traces_mapping

    transformers = {None: False, "decoder": False, "transformers": True}
    require(
        options.model_as in transformers, f"--as: {shown(options.model_as)} is not known; known: decoder, transformers"
    )
    if transformers[options.model_as]:
        require(options.hf_config is not None, "--as: transformers builds its model from --hf-config; give one")
    case = flags.trained_case_of(options)
    traces = trace_ranks(case, options.rank, options.hf_config if transformers[options.model_as] else None)
    if options.json:
        print(json.dumps(traces_mapping(case, traces), allow_nan=False))
    else:
        print_traces(case, traces, output())
    return 0


def report(options: argparse.Namespace) -> int:
    """Write a run's page and summary again from its records, or draw a quantity over the runs of a folder."""
    return run_report(options)


def models(options: argparse.Namespace) -> int:
    """List the presets, and with --devices the devices, with their figures."""
    from reports.answer import device_rows, model_rows, print_rows
    from reports.links import link_rows

    rows = device_rows() if options.devices else model_rows()
    if options.json:
        print(json.dumps(rows, allow_nan=False))
    else:
        print_rows(rows, "devices" if options.devices else "models", output())
        if options.devices:
            print_rows(link_rows(), "links", output())
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


def validate(options: argparse.Namespace) -> int:
    """Hold the formulas to published tables: every row predicted and scored, or skipped with the reason."""
    from reports.validate import validate_tables, validation_mapping

    found = validate_tables(options.tables, options.fit)
    if options.page is not None:
        from reports.validation_page import render_validation

        write_whole(Path(options.page), render_validation(found))
        tell(f"wrote {options.page}")
    if options.json:
        print(json.dumps(validation_mapping(found), allow_nan=False))
    else:
        from reports.validation_tables import print_validation

        print_validation(found, output(), rows=options.rows)
    return 0


def _parser() -> argparse.ArgumentParser:
    about = "Training layouts: measured, predicted, compared."
    parser = flags.OneLineParser(prog=PROGRAM, description=about, epilog=STATUSES, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=flags.OneLineParser)

    def verb(function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        text, name = (function.__doc__ or "").strip(), function.__name__.rstrip("_")
        usage = f"{PROGRAM} {name} {_OPERANDS.get(name, '')}[flags]"
        added = verbs.add_parser(name, help=text, description=text, usage=usage, epilog=STATUSES, allow_abbrev=False)
        added.add_argument("--json", action="store_true", help="one JSON document on standard output")
        added.set_defaults(run_verb=function)
        return added

    run = verb(bench)
    run.add_argument(
        "--suite",
        metavar="NAME",
        help="default, quick, strategies, peers, plan, memory, memory-pairs, kv, kv-times, kv-pairs, kv-matrix, speed;"
        " flags change its cases [default]",
    )
    run.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    run.add_argument("--passes", metavar="PASSES", help="train, memory, traffic, trace, with commas [the first three]")
    run.add_argument("--runs", metavar="FOLDER", help="where runs are kept [runs]")
    seconds = flags.above_zero(float)
    run.add_argument("--timeout", type=seconds, default=900.0, metavar="SECONDS", help="that a case may take [900]")
    run.add_argument("--hang", type=seconds, default=180.0, metavar="SECONDS", help="of silence from all ranks [180]")
    run.add_argument("--launches", type=flags.above_zero(int), metavar="N", help="of each case, for `compare` [1]")
    run.add_argument("--rdzv", metavar="HOST:PORT", help="where several machines meet; the same command on each")
    run.add_argument("--node-rank", type=int, metavar="N", help="0 records, others follow [0 on HOST]")
    run.add_argument("--calibration", metavar="FILE", help="of this machine, for time estimates; none [measured now]")
    run.add_argument("--emit", metavar="slurm", help="print an sbatch file for the cases; run nothing")
    flags.add_case_flags(run)
    measured = verb(calibrate)
    measured.add_argument("--quick", action="store_true", help="fewer shapes, fewer readings")
    measured.add_argument("--out", default="calibration.json", metavar="FILE", help="where it goes [calibration.json]")
    measured.add_argument("--ranks", default="1,2,4,8", metavar="N,N", help="ranks at once [1,2,4,8]")
    said = verb(estimate)
    said.add_argument("--explain", action="store_true", help="every term of the largest moment, with its source")
    said.add_argument("--calibration", metavar="FILE", help=CALIBRATION)
    said.add_argument("--alloc-conf", metavar="TEXT", help=ALLOC_CONF)
    flags.add_case_flags(said)
    timed = verb(simulate)
    how = "how operators run: eager (kernel by kernel), compiled (fused between products) [eager]"
    timed.add_argument("--execution", default="eager", metavar="MODE", help=how)
    timed.add_argument("--calibration", metavar="FILE", help=CALIBRATION)
    timed.add_argument("--trace", metavar="FILE", help="write the step as trace JSON, which Perfetto opens")
    timed.add_argument("--trace-limit", type=flags.above_zero(int), metavar="N", help="most tasks of a trace [250000]")
    timed.add_argument("--page", metavar="FILE.html", help="write a page: parts, pipeline, what more would buy")
    swept = "gpus, micro_batch, micro_batches or seq_len; doubles; a list with commas is taken too"
    timed.add_argument("--sweep", metavar="AXIS=A..B", help=swept)
    add_long_run_flags(timed)
    timed.add_argument("--grow", metavar="AXIS", help="with --sweep gpus: what added GPUs go to: dp, fsdp [the case's]")
    flags.add_case_flags(timed)
    served = verb(kv)
    add_kv_flags(served)
    flags.add_case_flags(served, without=("context",))  # how context parallelism goes, which nothing served has
    asked = verb(fit)
    asked.add_argument("--for", dest="target", metavar="WHAT", help="micro-batch, seq-len, gpus or recompute [all]")
    asked.add_argument("--accept", default="fits", metavar="VERDICT", help="fits, or tight: the bound need not [fits]")
    asked.add_argument("--alloc-conf", metavar="TEXT", help=ALLOC_CONF)
    flags.add_case_flags(asked)
    planned = verb(plan)
    add_plan_flags(planned)
    flags.add_case_flags(planned)
    handed = verb(export)
    add_export_flags(handed)
    flags.add_case_flags(handed)
    taken = verb(import_)
    add_import_flags(taken)
    flags.add_case_flags(taken)
    add_compare_flags(verb(compare))
    traced = verb(trace)
    traced.add_argument("--rank", type=int, metavar="N", help="the rank to trace [the fullest by formula]")
    traced.add_argument(
        "--as", dest="model_as", metavar="decoder|transformers", help="whose code: ours, or transformers' [decoder]"
    )
    flags.add_case_flags(traced)
    add_report_flags(verb(report))
    held = verb(validate)
    held.add_argument(
        "tables", metavar="TABLE.csv", nargs="+", help="published rows, in the columns of tests/published"
    )
    held.add_argument("--fit", metavar="TABLE.csv", nargs="+", default=(), help="fit constants on split = fit of these")
    held.add_argument("--rows", action="store_true", help="every row, not the scores alone")
    held.add_argument("--page", metavar="FILE.html", help="write a page: scores, figures, every row")
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
        options.program, options.arguments = PROGRAM, tuple(given)
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
