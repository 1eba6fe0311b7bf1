"""What `plan` does: ranks every legal layout that fits, shows why, and hands the best over."""

from __future__ import annotations

import argparse

from suite.parse import SpecError


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """What is fixed and what is wanted."""
    parser.add_argument("--objective", metavar="WHAT", help="time, cost or energy [time]")


def run_plan(options: argparse.Namespace) -> int:
    """Rank; 2 where nothing fits."""
    raise SpecError(f"--objective: {options.objective!r} is not built")
