"""What `import` does: another tool's configuration becomes a Case, its snapshot or trace a measurement."""

from __future__ import annotations

import argparse

from suite.parse import SpecError


def add_import_flags(parser: argparse.ArgumentParser) -> None:
    """The file and what wrote it."""
    parser.add_argument("file", metavar="FILE", help="what another tool wrote")
    parser.add_argument("--from", dest="source", metavar="TOOL", help="who wrote it [told by its content]")


def run_import(options: argparse.Namespace) -> int:
    """Read the file; SpecError where it is none that is known."""
    raise SpecError(f"FILE: {options.file!r} is of no tool that is known")
