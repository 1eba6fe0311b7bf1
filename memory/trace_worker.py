"""What `memory.trace_asking` starts: of each Case, a line of JSON on standard input, the row of its trace, a line on
standard output. Whatever else is printed goes to standard error."""

from __future__ import annotations

import json
import os
import sys

from memory.trace import distinct_ranks, trace_case
from suite.case import Case, case_from
from suite.parse import SpecError, to_mapping
from suite.store import TraceRow

#: characters of a crash that a row repeats
LONGEST = 300


def row_of(case: Case) -> TraceRow:
    """The row of a case: the samples of one rank of each kind, or in one line why there are none."""
    try:
        samples = tuple(sample for rank in distinct_ranks(case) for sample in trace_case(case, rank))
    except SpecError as error:
        return TraceRow(case.case_id, case.to_mapping(), reason=str(error))
    except Exception as error:  # the next case is traced all the same
        lines = str(error).splitlines() or [""]
        return TraceRow(case.case_id, case.to_mapping(), reason=f"{type(error).__name__}: {lines[0]}"[:LONGEST])
    return TraceRow(case.case_id, case.to_mapping(), samples)


def main() -> int:
    """Answer line after line, to the end of the input."""
    out = os.dup(1)
    os.dup2(2, 1)
    with open(out, "w", encoding="utf-8") as stream:
        for line in sys.stdin:
            print(json.dumps(to_mapping(row_of(case_from(json.loads(line))))), file=stream, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
