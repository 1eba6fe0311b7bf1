"""What every launch says of a case's ranks: how they lie in the grid, and the torchrun that starts them."""

from __future__ import annotations

from suite.case import Case
from suite.layout import AXES, Layout


def summary(case: Case) -> str:
    """The case in a line: model, layout, ranks, machines, tokens a step."""
    cluster, ranks = case.cluster, case.layout.world_size
    where = f"{cluster.nodes} x {cluster.per_node} {cluster.device}"
    name = " ".join(case.model.name.split())  # it goes into comments, which a line break would end
    return f"{name}, {case.layout}, on {ranks} ranks ({where}): {case.tokens_per_step:,} tokens a step"


def grid_lines(layout: Layout) -> tuple[str, ...]:
    """The rank grid, outermost axis first, and which ranks make the first group of every axis above 1."""
    lines = ["rank grid, outermost first: " + " x ".join(f"{axis} {getattr(layout, axis)}" for axis in AXES)]
    stride = layout.world_size
    for axis in AXES:
        degree = getattr(layout, axis)
        stride //= degree
        if degree > 1:
            ranks = [str(place * stride) for place in range(degree)]
            shown = ranks if degree <= 4 else [*ranks[:3], "...", ranks[-1]]
            lines.append(f"  {axis}: rank 0's group is {', '.join(shown)}")
    return tuple(lines)


def torchrun(case: Case, endpoint: str, run_id: str, program: str) -> str:
    """The command line of one machine: `program` on each of its ranks. Several machines meet at `endpoint`."""
    cluster = case.cluster
    if cluster.nodes == 1:
        return f"torchrun --standalone --nproc-per-node {cluster.per_node} {program}"
    return (
        f"torchrun --nnodes {cluster.nodes} --nproc-per-node {cluster.per_node} --rdzv-id {run_id}"
        f" --rdzv-backend c10d --rdzv-endpoint {endpoint} {program}"
    )
