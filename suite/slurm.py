"""Cases -> the sbatch file that runs them on a Slurm cluster: one bench a machine, which starts torchrun there."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence

from suite.case import Case

#: seconds beyond the cases' own deadlines: data, this machine's rates, the machines' meeting, the report
START_S = 300.0
#: where the machines meet, by job, so that two jobs on one machine do not collide
FIRST_PORT, PORTS = 20_000, 10_000


def sbatch(
    cases: Sequence[Case],
    command: Sequence[str],
    timeout_s: float,
    notes: Sequence[str] = (),
    before: Sequence[str] = (),
) -> str:
    """The text of an sbatch file that runs `command` (which reads its cases on standard input) once a machine.

    It asks for as many machines, and devices a machine, as the largest case takes, and for the seconds of every
    case's deadline together. srun hands its standard input to every task, so that no file system need be shared but
    the program's; the first host of the allocation records. `notes` are comments under what is asked for, `before`
    shell lines ahead of srun, where $first and $port name the meeting of several machines.
    """
    nodes = max(case.cluster.nodes for case in cases)
    devices = max(case.cluster.per_node for case in cases)
    gpus = [f"#SBATCH --gpus-per-node={devices}"] if any(case.cluster.device != "cpu" for case in cases) else []
    words = shlex.join(command)
    if nodes > 1:
        words += ' --rdzv "$first:$port"'
    lines = [
        "#!/bin/bash",
        "#SBATCH --job-name=shardscope",
        f"#SBATCH --nodes={nodes}",
        "#SBATCH --ntasks-per-node=1",
        *gpus,
        "#SBATCH --exclusive",
        f"#SBATCH --time={_minutes(timeout_s * len(cases) + START_S)}",
        *notes,
        "",
        "# One bench a machine, each starting torchrun for its ranks; the first machine records.",
        "set -euo pipefail",
        *(_meeting() if nodes > 1 else []),
        *before,
        f"srun {words} <<'CASES'",
        json.dumps([case.to_mapping() for case in cases], indent=1),
        "CASES",
    ]
    return "\n".join(lines) + "\n"


def _meeting() -> list[str]:
    """Shell lines that name where the machines meet."""
    return [
        'hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        "first=${hosts%%$'\\n'*}",
        f"port=$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))",
    ]


def _minutes(seconds: float) -> int:
    """Whole minutes, which is how Slurm reads a bare number."""
    return math.ceil(seconds / 60)
