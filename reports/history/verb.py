"""What `report` does: a run's page and summary written again, or with --history a quantity over a folder's runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from suite.parse import require, to_mapping

#: what is drawn where nothing else is asked for
QUANTITY = "step_seconds"


def add_report_flags(parser: argparse.ArgumentParser) -> None:
    """The run, or the folder of runs and what is drawn of it."""
    parser.add_argument("run", metavar="RUN", nargs="?", help="a run's folder, or the records.jsonl in it")
    parser.add_argument("--records", metavar="FILE", help="write the run's numbers instead, a row each: .csv or .jsonl")
    parser.add_argument("--history", metavar="FOLDER", help="draw a quantity over all runs in a folder, by commit")
    parser.add_argument("--quantity", metavar="NAME,NAME", help=f"with --history: what, as in `compare` [{QUANTITY}]")
    parser.add_argument("--page", metavar="FILE.html", help="with --history: write a page")


def run_report(options: argparse.Namespace) -> int:
    """Write and show; always 0."""
    if options.history is not None:
        require(options.run is None, f"RUN: {options.run!r} given beside --history; give one of them")
        require(options.records is None, "--records: given beside --history; it writes one RUN")
        return _history(options)
    for flag in ("quantity", "page"):
        require(getattr(options, flag) is None, f"--{flag}: given without --history, which draws it; give both")
    require(options.run is not None, "RUN: missing; name a run's folder, or a folder of runs with --history")
    if options.records is not None:
        from reports.records import run_records

        return run_records(options)
    from reports.bench import write_and_show
    from reports.load import load_run

    run, folder = load_run(options.run), Path(options.run)
    write_and_show(run, folder if folder.is_dir() else folder.parent, options.json)
    return 0


def _history(options: argparse.Namespace) -> int:
    """The runs of a folder in order, every quantity asked for drawn over them."""
    from reports.history.collect import histories, read_runs
    from reports.history.text import histories_mapping, print_histories
    from reports.judge import Limits
    from reports.measures import measures_named
    from reports.streams import output, tell

    measures, limits, root = measures_named(options.quantity or QUANTITY), Limits(), Path(options.history)
    runs, unread = read_runs(root)
    for line in unread:
        tell(f"not read: {line}")
    found = histories(runs, measures, limits)
    names = ", ".join(measure.name for measure in measures)
    require(bool(found), f"--quantity: no case of the {len(runs)} runs in {options.history!r} has {names}")
    if options.page is not None:
        from reports.history.page import render_history
        from suite.files import write_whole

        write_whole(Path(options.page), render_history(root, found, unread, limits))
        tell(f"wrote {options.page}")
    if options.json:
        print(json.dumps(to_mapping(histories_mapping(str(root), found, unread, limits)), allow_nan=False))
    else:
        print_histories(found, limits, output())
    return 0
