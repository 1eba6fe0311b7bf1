"""The verb `kv`: what serving a case takes, what fits, how fast it answers, and what other choices would change."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from reports.kv.answer import serving_mapping
from reports.kv.options import asked_of
from reports.kv.states import is_state, run_states
from reports.kv.text import print_serving
from reports.streams import output, tell
from suite.files import write_whole


def run_kv(options: argparse.Namespace) -> int:
    """Answer, and write the page where one was asked for."""
    if is_state(options):
        return run_states(options, output())
    asked = asked_of(options)
    if options.measure:
        from reports.kv.measured import measured

        asked = measured(asked)
    answer = serving_mapping(asked)
    if options.page is not None:
        from reports.kv.page import render_serving

        write_whole(Path(options.page), render_serving(answer, asked))
        tell(f"wrote {options.page}")
    if options.json:
        print(json.dumps(answer, allow_nan=False))
    else:
        print_serving(answer, asked.case, output())
    return 0
