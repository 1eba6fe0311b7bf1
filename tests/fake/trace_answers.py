"""Answers in the tracer's place, started as it is: `python -m tests.fake.trace_answers`. It dies where a seed is 1, is
refused a seed of 2, and says which process it is."""

from __future__ import annotations

import json
import os
import sys

from suite.case import case_from
from suite.parse import to_mapping
from suite.record import Moment, Quantity, Sample
from suite.store import TraceRow

if __name__ == "__main__":
    for line in sys.stdin:
        case = case_from(json.loads(line))
        if case.recipe.seed == 1:
            print("no more memory", file=sys.stderr)
            os._exit(7)
        samples = (Sample(Quantity.MEMORY, os.getpid(), 0, moment=Moment.STEADY),)
        refused = case.recipe.seed == 2
        row = TraceRow(case.case_id, case.to_mapping(), *(((), "it is 2") if refused else (samples, "")))
        print(json.dumps(to_mapping(row)), flush=True)
