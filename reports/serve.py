"""The verb `kv`: what serving a case takes, what fits, how fast it answers, and what other choices would change."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from reports.serving_answer import serving_mapping
from reports.serving_options import asked_of
from reports.serving_text import print_serving
from reports.streams import output, tell


def run_kv(options: argparse.Namespace) -> int:
    """Answer, and write the page where one was asked for."""
    asked = asked_of(options)
    if options.measure:
        from reports.serving_measured import measured

        asked = measured(asked)
    answer = serving_mapping(asked)
    if options.page is not None:
        from reports.serving_page import render_serving

        Path(options.page).write_text(render_serving(answer, asked), encoding="utf-8")
        tell(f"wrote {options.page}")
    if options.json:
        print(json.dumps(answer, allow_nan=False))
    else:
        print_serving(answer, asked.case, output())
    return 0
