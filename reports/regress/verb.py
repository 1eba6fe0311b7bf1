"""What `compare` does: two runs case by case, or the layouts of one run side by side."""

from __future__ import annotations

import argparse

from suite.parse import SpecError


def add_compare_flags(parser: argparse.ArgumentParser) -> None:
    """The runs and what counts as worse."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    parser.add_argument("--strategies", action="store_true", help="the layouts of one run, side by side")


def run_compare(options: argparse.Namespace) -> int:
    """Compare; 1 with --fail-on worse where something is."""
    raise SpecError(f"RUN: {options.runs!r} cannot be compared yet")
