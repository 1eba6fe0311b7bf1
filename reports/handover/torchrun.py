"""A case as a plain torchrun command line: for a trainer of the user's own, or for the worker that measures here."""

from __future__ import annotations

import json

from reports.handover.base import Handover
from reports.handover.ranks import grid_lines, left_to_program, summary, torchrun, variables
from suite.case import Case

FILENAME = "launch.sh"
WORKER = "parallelism.worker"
#: parts of a case that training has no use for
SERVED = ("serving", "cache")


def torchrun_script(case: Case) -> Handover:
    """A shell script that starts one machine's ranks of whatever program it is given; without one, our worker on the
    case. torchrun itself knows ranks, not what they are for: degrees are the program's to be told, and are said in
    comments alone."""
    several, out = case.cluster.nodes > 1, f"shardscope-{case.case_id}"
    usage = f"{'HEAD=FIRST_MACHINE ' if several else ''}bash {FILENAME} train.py ARGUMENTS..."
    left = left_to_program(case)
    launch = torchrun(case, '"$HEAD:$PORT"', case.case_id)
    meeting = [
        ': "${HEAD:?give the name or address of the first machine}"',
        "PORT=${PORT:-29500}",
    ]
    lines = [
        "#!/bin/bash",
        f"# {summary(case)}",
        *(f"# {line}" for line in grid_lines(case.layout)),
        "#",
        f"# {'On every machine' if several else 'Run'}: {usage}",
        "# Each rank runs it, with RANK, LOCAL_RANK and WORLD_SIZE set.",
        f"# - {left}",
        f"# Without a program the case is trained by Shardscope's worker: its rows go to ${{OUT:-{out}}}.",
        "set -euo pipefail",
        "",
        *variables(case),
        *(["", *meeting] if several else []),
        "",
        "if [ $# -eq 0 ]; then",
        f"    out=${{OUT:-{out}}}",
        '    mkdir -p "$out" && rm -f "$out"/rank-*.jsonl',
        "    cat > \"$out/case.json\" <<'CASE'",
        json.dumps({part: value for part, value in case.to_mapping().items() if part not in SERVED}, indent=1),
        "CASE",
        f'    set -- -m {WORKER} "$out/case.json" --out "$out"',
        "fi",
        f"exec {launch}",
    ]
    return Handover("\n".join(lines) + "\n", FILENAME, (left,), usage)
