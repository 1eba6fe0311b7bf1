"""What `import` does: another tool's configuration becomes a Case, its snapshot or trace a measurement."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from reports.intake.base import Taken
from reports.intake.measurements import (
    add_measurement_flags,
    is_measurement,
    refuse_measurement_flags,
    run_measurement,
)
from reports.intake.merge import Merged, merge
from reports.intake.reading import MEASURED
from reports.intake.sources import SOURCES, source_of
from reports.streams import tell
from suite.case import PARTS, Case
from suite.files import write_whole
from suite.models import PRESETS
from suite.parse import to_mapping


def add_import_flags(parser: argparse.ArgumentParser) -> None:
    """The file, what wrote it, and where the Case goes."""
    parser.add_argument("file", metavar="FILE", help="what another tool wrote; - reads standard input")
    parser.add_argument(
        "--from", dest="source", metavar="TOOL", help=f"{', '.join((*SOURCES, *MEASURED))} [told by the content]"
    )
    add_measurement_flags(parser)
    parser.add_argument("--out", metavar="CASE.json", help="where the Case goes [standard output]")


def run_import(options: argparse.Namespace) -> int:
    """Read the file; SpecError where it is none that is known. The Case goes to standard output as --case - takes it,
    and what was not modelled, was assumed, changes nothing or was overruled to standard error."""
    if is_measurement(options.file, options.source):
        return run_measurement(options)
    refuse_measurement_flags(options)
    source = source_of(options.file, options.source)
    name = "standard input" if options.file == "-" else Path(options.file).name
    taken = SOURCES[source].read(options.file)
    merged = merge(taken, options, name)
    _tell(source, name, taken, merged)
    if options.out is not None:
        write_whole(Path(options.out), _text(merged.case.to_mapping()))
        tell(f"{options.out}: written; `estimate --case {options.out}` takes it")
    if options.json:
        print(json.dumps(_document(source, taken, merged), allow_nan=False))
    elif options.out is None:
        print(_text(short(merged.case)), end="")
    return 0


def short(case: Case) -> dict[str, Any]:
    """The case without what is at its default, its model by name where it is a preset: `case_from` reads the same."""
    data: dict[str, Any] = {"model": to_mapping(case.model)}
    if PRESETS.get(case.model.name) == case.model:
        data["model"] = case.model.name
    for part, kind in PARTS.items():
        usual, own = to_mapping(kind()), to_mapping(getattr(case, part))
        if given := {key: value for key, value in own.items() if value != usual[key]}:
            data[part] = given
    return data


def _document(source: str, taken: Taken, merged: Merged) -> dict[str, Any]:
    """What --json prints: the Case whole, and every line that standard error has."""
    return {
        "source": source,
        "case_id": merged.case.case_id,
        "case": merged.case.to_mapping(),
        "unmodelled": list(taken.unmodelled),
        "assumed": list(taken.assumed),
        "ignored": list(taken.ignored),
        "overruled": list(merged.overruled),
    }


def _tell(source: str, name: str, taken: Taken, merged: Merged) -> None:
    tell(f"{name}: read as {source}: {merged.case.label}, global batch {merged.case.global_batch}")
    for kind, lines in (
        ("not modelled", taken.unmodelled),
        ("assumed", taken.assumed),
        ("changes nothing", taken.ignored),
        ("overruled", merged.overruled),
    ):
        for line in lines:
            tell(f"{kind}: {line}")


def _text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, allow_nan=False) + "\n"
