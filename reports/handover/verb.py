"""What `export` does: a case in another trainer's form, on standard output or in a file."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from reports.handover.targets import TARGETS
from reports.streams import output, tell
from suite import flags
from suite.files import write_whole
from suite.parse import nearest, require, shown, to_mapping


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """--to and --out."""
    parser.add_argument("--to", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--out", metavar="FILE", help="where it goes [standard output]")


def run_export(options: argparse.Namespace) -> int:
    """Write the case for the target; what the target cannot express goes to standard error too."""
    require(options.to is not None, f"--to: missing; name a target: {', '.join(TARGETS)}")
    require(options.to in TARGETS, f"--to: {shown(options.to)} is not known; {nearest(options.to, TARGETS)}")
    made = TARGETS[options.to](flags.trained_case_of(options))
    for line in made.unsaid:
        tell(f"not said to {options.to}: {line}")
    if options.out is not None:
        write_whole(Path(options.out), made.text)
    if options.json:
        print(json.dumps(to_mapping(made), allow_nan=False))
    elif options.out is None:
        output().print(made.text, end="", markup=False, highlight=False, soft_wrap=True)
    else:
        usage = made.usage.replace(made.filename, shlex.quote(options.out))
        tell(f"{options.out}: written" + (f"; {usage}" if usage else ""))
    return 0
