"""What `import` asks of a file before it reads it: is it a measurement, and do its flags fit? Light, so that the
command line starts fast; `reports.intake.measured` reads and answers."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from reports.intake.reading import MEASURED
from suite.parse import require

#: what pickles, gzip, zip, pages and timelines begin with: no configuration does
_MAGIC = re.compile(rb"\s*(\x80|\x1f\x8b|PK\x03\x04|<|\[\s*\[)")
_KEYS = (b'"traceEvents"', b'"device_traces"', b'"segments"')
_HEAD = 2**20


def add_measurement_flags(parser: argparse.ArgumentParser) -> None:
    """--runs and --calibration."""
    parser.add_argument("--runs", metavar="FOLDER", help="of a snapshot or trace: record it as a run in this folder")
    parser.add_argument("--calibration", metavar="FILE", help="of a trace from this machine's CPU: what times rest on")


def is_measurement(path: str, named: str | None) -> bool:
    """Is it a measurement that the flags or the file's beginning name? A folder is one: of a file a rank."""
    if named is not None or path == "-":
        return named in MEASURED
    where = Path(path)
    try:
        if not where.is_file():  # a pipe would wait here
            return where.is_dir()
        with where.open("rb") as file:
            head = file.read(_HEAD)
    except (OSError, ValueError):  # whoever reads it next says what is wrong
        return False
    return _MAGIC.match(head) is not None or any(key in head for key in _KEYS)


def refuse_measurement_flags(options: argparse.Namespace) -> None:
    """Refuse, beside a configuration, what is about measurements alone: nothing that was given is ignored."""
    for flag in ("runs", "calibration"):
        require(getattr(options, flag) is None, f"--{flag}: FILE is a configuration, not a measurement; leave it out")


def run_measurement(options: argparse.Namespace) -> int:
    """Read the file, print it beside the estimate, record it where --runs says; 1 where the run ran out of memory."""
    from reports.intake.measured import answer_measurement  # here: it draws pages

    return answer_measurement(options)
