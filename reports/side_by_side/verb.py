"""What `compare --strategies RUN` does: the layouts of one run side by side, as text, JSON, a page, Markdown."""

from __future__ import annotations

import argparse
import json

from reports.asked_files import check_files, write_files
from reports.load import load_run
from reports.side_by_side.groups import lay_side_by_side
from reports.streams import output
from reports.summary import compare_run
from suite.parse import require, to_mapping

#: flags of `compare` that say how two runs are held to each other
_OF_TWO = ("fail_on", "quantity", "least", "alpha", "more_a", "more_b", "across_machines")


def run_strategies(options: argparse.Namespace) -> int:
    """Lay them side by side and show it; 0. SpecError for what is no run, or holds nothing to lay side by side."""
    count = len(options.runs)
    require(count == 1, f"RUN: {count} given; --strategies takes one, RUN_A RUN_B without it two")
    given = ", ".join(f"--{name.replace('_', '-')}" for name in _OF_TWO if getattr(options, name))
    require(not given, f"--strategies: given beside {given}; it compares the layouts of one run, not two runs")
    check_files(options.page, options.markdown)
    found = lay_side_by_side(compare_run(load_run(options.runs[0])))
    texts: dict[str, str] = {}
    if options.page is not None:
        from reports.side_by_side.page import render_side_by_side

        texts[options.page] = render_side_by_side(found)
    if options.markdown is not None:
        from reports.side_by_side.markdown import side_by_side_markdown

        texts[options.markdown] = side_by_side_markdown(found)
    write_files(texts)
    if options.json:
        from reports.side_by_side.mapping import side_by_side_mapping

        print(json.dumps(to_mapping(side_by_side_mapping(found)), allow_nan=False))
    else:
        from reports.side_by_side.text import print_side_by_side

        print_side_by_side(found, output())
    return 0
