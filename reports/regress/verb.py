"""What `compare` does: two runs case by case, or the layouts of one run side by side."""

from __future__ import annotations

import argparse

from suite.flags import above_zero
from suite.parse import require
from suite.stats import ALPHA, LEAST


def add_compare_flags(parser: argparse.ArgumentParser) -> None:
    """The runs and what counts as worse."""
    number = above_zero(float)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="RUN_A RUN_B: folders of runs")
    parser.add_argument("--strategies", action="store_true", help="the layouts of one run, side by side")
    parser.add_argument("--fail-on", metavar="WHAT", help="exit status 1 where anything is: worse, or changed")
    parser.add_argument("--quantity", metavar="NAME,NAME", help="step_seconds, memory_bytes, bytes_sent ... [all]")
    parser.add_argument("--least", type=number, metavar="FRACTION", help=f"of time, that counts as a change [{LEAST}]")
    parser.add_argument("--alpha", type=number, metavar="P", help=f"chance of a false call [{ALPHA}]")
    parser.add_argument("--more-a", metavar="RUN", nargs="+", help="further runs of RUN_A's code: more launches")
    parser.add_argument("--more-b", metavar="RUN", nargs="+", help="further runs of RUN_B's code")
    parser.add_argument("--across-machines", action="store_true", help="compare runs of different machines")
    parser.add_argument("--page", metavar="FILE.html", help="write a page")
    parser.add_argument("--markdown", metavar="FILE.md", help="write a pull request's comment")


def run_compare(options: argparse.Namespace) -> int:
    """Compare; 1 with --fail-on worse where something is."""
    if options.strategies:
        from reports.side_by_side.verb import run_strategies

        return run_strategies(options)
    from reports.regress.asked import compare_two

    count = len(options.runs)
    require(count == 2, f"RUN: {count} given; RUN_A RUN_B takes two (--strategies takes one)")
    return compare_two(options)
