"""Runs as a pandas DataFrame, for notebooks: `frame("runs/<stamp>")`. Also written as CSV and JSON Lines."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from reports.compare import Run
from reports.frame_rows import run_rows
from reports.load import load_run
from suite.files import write_whole
from suite.parse import SpecError, require, shown

#: the columns and their types, which pandas' readers take: read_csv(file, dtype=DTYPES) is the frame again
DTYPES = {
    "run": "string",
    "case_id": "string",
    "case": "string",
    "model": "string",
    "layout": "string",
    "precision": "string",
    "attention": "string",
    "cache": "string",
    "world_size": "Int64",
    "outcome": "string",
    "tier": "string",
    "quantity": "string",
    "component": "string",
    "part": "string",
    "moment": "string",
    "collective": "string",
    "rank": "Int64",
    "index": "Int64",
    "value": "float64",
    "unit": "string",
    "reason": "string",
    "formula": "string",
    "source": "string",
}
#: what tells how rows are written: the end of a file's name
FORMATS = (".csv", ".jsonl")


def frame(*paths: Path | str) -> pd.DataFrame:
    """Every number of the runs in these folders, a row each, `run` saying of which: columns as in `run_frame`.

    SpecError where no run is recorded, or its records are damaged.
    """
    require(bool(paths), "paths: none given; name a run's folder, or several")
    return pd.concat([run_frame(load_run(path)) for path in paths], ignore_index=True)


def run_frame(run: Run) -> pd.DataFrame:
    """Every number of a run, a row each. `tier` says how it is known: `formula` (the estimates' terms), `measure` (the
    raw samples), `trace` (fake tensors), `peer` (what another tool says; `source` names it).

    All tiers speak of the same quantity, component, moment and rank, so `pivot_table(index=[...], columns="tier",
    values="value", aggfunc="sum")` lays them side by side; a total that was measured has no component. `unit` is B, s,
    tokens/s, nats a token, TFLOP/s, or 1 for counts and fractions. A case with no number at all keeps one row, whose
    value is missing; `reason` says why a value is, or how the case ended. The parts of a predicted step are
    `step_part_seconds`, named in `part`; they sum to its `step_seconds`.
    """
    return pd.DataFrame(run_rows(run), columns=list(DTYPES)).astype(DTYPES)


def check_rows_file(path: str) -> Path:
    """The file that rows are to be written to. SpecError for a name that does not say how, or a folder not there."""
    target = Path(path)
    require(
        target.suffix in FORMATS,
        f"--records: {shown(path)} does not say how; end the file's name in {' or '.join(FORMATS)}",
    )
    require(target.parent.is_dir(), f"--records: {shown(path)}: its folder is not there; make it first")
    return target


def write_rows(rows: pd.DataFrame, path: Path) -> Path:
    """Write a frame as CSV or JSON Lines, whole or not at all; what is missing is empty, or null. OSError where it
    cannot be."""
    if path.suffix == ".csv":
        return write_whole(path, rows.to_csv(index=False, lineterminator="\n"))
    if path.suffix == ".jsonl":
        records = rows.astype(object).where(rows.notna(), None).to_dict("records")
        return write_whole(path, "".join(f"{json.dumps(record, allow_nan=False)}\n" for record in records))
    raise SpecError(f"{path}: expected a name that ends in {' or '.join(FORMATS)}")
