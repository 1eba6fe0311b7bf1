"""A case as a Slurm batch script: for a trainer of the user's own, or for the bench that measures it."""

from __future__ import annotations

from reports.handover.base import Handover
from reports.handover.ranks import grid_lines, left_to_program, summary, torchrun, variables
from suite.case import Case
from suite.slurm import sbatch

FILENAME = "job.sbatch"
#: seconds that `bench` gives a case unless it is told otherwise
BENCH_S = 900.0
BENCH = ("shardscope", "bench", "--case", "-", "--timeout", f"{BENCH_S:g}")


def slurm(case: Case) -> Handover:
    """The batch script of one case: a task a machine, which starts torchrun for its ranks; all meet at the first
    machine of the allocation. Partition and account are left to be filled in."""
    usage, left = f"sbatch {FILENAME} train.py ARGUMENTS...", left_to_program(case)
    notes = [
        "##SBATCH --partition=NAME  your cluster's: take one # away",
        "##SBATCH --account=NAME",
        "# The minutes are what bench takes at most; a training of your own wants its own.",
        "#",
        f"# {summary(case)}",
        *(f"# {line}" for line in grid_lines(case.layout)),
        "#",
        f"# {usage} runs that program on every rank; without one, the case is measured by bench.",
        f"# - {left}",
    ]
    launch = torchrun(case, '"$first:$port"', '"$SLURM_JOB_ID"')
    before = [
        "if [ $# -gt 0 ]; then",
        *(f"    {line}" for line in variables(case)),
        f"    exec srun {launch}",
        "fi",
    ]
    return Handover(sbatch((case,), BENCH, BENCH_S, notes, before), FILENAME, (left,), usage)
