"""What every launch says of a case's ranks: how they lie in the grid, and the torchrun that starts them."""

from __future__ import annotations

from suite.case import Case
from suite.launch import rank_variables
from suite.layout import AXES, Layout, degrees


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


#: a script's own arguments
GIVEN = '"$@"'


def torchrun(case: Case, endpoint: str, run_id: str, program: str = GIVEN) -> str:
    """The command line of one machine: `program` on each of its ranks. Several machines meet at `endpoint`."""
    cluster = case.cluster
    if cluster.nodes == 1:
        # the name of this machine need not resolve
        return f"torchrun --standalone --local-addr 127.0.0.1 --nproc-per-node {cluster.per_node} {program}"
    return (
        f"torchrun --nnodes {cluster.nodes} --nproc-per-node {cluster.per_node} --rdzv-id {run_id}"
        f" --rdzv-backend c10d --rdzv-endpoint {endpoint} {program}"
    )


def left_to_program(case: Case) -> str:
    """What a launcher leaves to the program that it starts, which is all but the number of ranks."""
    return (
        f"layout({degrees(case.layout)}), workload, recipe: only ranks are started; your program is told of these by"
        " flags of its own"
    )


def variables(case: Case) -> tuple[str, ...]:
    """Shell lines that tell every rank of its threads and its memory; what is set already stands."""
    per_node, threads = case.cluster.per_node, "OMP_NUM_THREADS"
    lines = [
        f"threads=$(($(nproc) / {per_node}))  # the ranks of a machine share its cores",
        f"export {threads}=${{{threads}:-$((threads > 0 ? threads : 1))}}",
    ]
    if case.cluster.device == "cpu":
        lines.append("# threads that wait sleep, and the heap keeps what it was given, as CUDA's allocator does")
        heap = {name: value for name, value in rank_variables(1).items() if name != threads}
        settings = {"OMP_WAIT_POLICY": "passive", **heap}
        return (*lines, *(f"export {name}=${{{name}:-{value}}}" for name, value in settings.items()))
    lines += [
        "# torch's allocator grows its blocks in place, and leaves fewer gaps between them",
        "export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}",
    ]
    if case.layout.tp > 1:
        lines += [
            "# for Megatron-LM with tp before Blackwell: kernels start in the order they were queued; never with FSDP2",
            "# export CUDA_DEVICE_MAX_CONNECTIONS=1",
        ]
    return tuple(lines)
