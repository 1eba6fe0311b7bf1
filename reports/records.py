"""What `report RUN --records FILE` does: a run's numbers as flat rows in a file that pandas and others read."""

from __future__ import annotations

import argparse
import json

from reports.frame import DTYPES, check_rows_file, frame, write_rows
from reports.streams import output
from reports.text import plain


def run_records(options: argparse.Namespace) -> int:
    """Write the file and say what is in it. SpecError for a file name that says no format, or what is no run."""
    path = check_rows_file(options.records)
    rows = frame(options.run)
    write_rows(rows, path)
    if options.json:
        print(json.dumps({"records": str(path), "rows": len(rows), "columns": list(DTYPES)}))
    else:
        output().print(f"{len(rows):,} rows  {plain(path)}", markup=False)
    return 0
