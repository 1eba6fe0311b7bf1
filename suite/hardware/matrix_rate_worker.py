"""What `suite.hardware.matrix_rate` starts: reads one JSON request on standard input, prints one JSON answer.

torch is imported once, inside this process, and the ranks are forked from it before it has threads; that
saves the seconds that each rank's own import would take.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Barrier
from typing import Any

from suite.environment import available_cores, cpu_model, others_cpu_seconds

#: calls not timed, and readings a point
WARMUP, READINGS = 2, 8
#: seconds a rank waits for the others at the start of a reading
BARRIER_S = 60.0

Point = tuple[str, tuple[int, int, int]]


def main() -> int:
    """Measure every point of the request with each number of ranks."""
    import torch

    request = json.load(sys.stdin)
    points: list[Point] = [(dtype, tuple(shape)) for dtype in request["dtypes"] for shape in request["shapes"]]
    rows: list[dict[str, Any]] = []
    start, others_before = time.monotonic(), others_cpu_seconds()
    for ranks in request["rank_counts"]:
        rows += measure(ranks, points, request["slot_seconds"])
    others = (others_cpu_seconds() - others_before) / (time.monotonic() - start)
    answer = {
        "cpu": cpu_model() or "CPU",
        "cores": available_cores(),
        "torch": torch.__version__,
        "other_cores": max(0.0, others),
        "rows": rows,
    }
    print(json.dumps(answer))
    return 0


def measure(ranks: int, points: list[Point], slot_seconds: float) -> list[dict[str, Any]]:
    """The readings of each point, those of all ranks together, with `ranks` processes at once."""
    context = multiprocessing.get_context("fork")
    barrier, threads = context.Barrier(ranks), max(1, available_cores() // ranks)
    children, receivers = [], []
    for _ in range(ranks):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=run_rank, args=(sender, barrier, points, slot_seconds, threads), daemon=True)
        child.start()
        sender.close()  # before the next fork: with no other holder, a rank that dies is an end of file
        children.append(child)
        receivers.append(receiver)
    results = collect(receivers)
    for child in children:
        child.join()
    return [
        {
            "dtype": dtype,
            "ranks": ranks,
            "threads": threads,
            **dict(zip("mnk", shape, strict=True)),
            "seconds": [seconds for result in results for seconds in result[index]],
        }
        for index, (dtype, shape) in enumerate(points)
    ]


def collect(receivers: list[Connection[Any, Any]]) -> list[list[list[float]]]:
    """What each rank sends. Ends this process, and with it the other ranks, at the first that fails."""
    results, pending = [], list(receivers)
    while pending:
        for receiver in wait(pending):
            assert isinstance(receiver, Connection)
            try:
                result = receiver.recv()
            except EOFError:
                sys.exit(f"one of {len(receivers)} ranks died while it measured")
            if isinstance(result, str):
                sys.exit(f"one of {len(receivers)} ranks failed: {result}")
            results.append(result)
            pending.remove(receiver)
    return results


def run_rank(
    sender: Connection[Any, Any], barrier: Barrier, points: list[Point], slot_seconds: float, threads: int
) -> None:
    """One rank: time every point beside the other ranks, then send the readings, a list a point, or what went wrong."""
    import torch

    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            works = [linear_products(dtype, shape) for dtype, shape in points]
            sender.send(
                readings(works, barrier, slot_seconds / READINGS, barrier.parties * threads > available_cores())
            )
    except Exception as error:  # whatever it is, the parent tells it in one line
        sender.send(f"{type(error).__name__}: {error}".splitlines()[0])


def linear_products(dtype: str, shape: tuple[int, int, int]) -> Callable[[], None]:
    """A call that does the three products of an (m tokens, n out, k in) linear layer's training step."""
    import torch

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    m, n, k = shape
    x, weight, gradient = (torch.randn(size).to(kind) for size in ((m, k), (n, k), (m, n)))

    def products() -> None:
        torch.nn.functional.linear(x, weight)
        gradient.mm(weight)
        gradient.t().mm(x)

    return products


def readings(works: list[Callable[[], None]], barrier: Barrier, part_seconds: float, shared: bool) -> list[list[float]]:
    """Seconds that each work takes: READINGS readings of `part_seconds`, all ranks starting each one together.

    A reading is the median call, which another process's turn does not reach; but the mean where the ranks
    themselves share cores, whose turns are then what is measured. The works take turns, so that a machine that
    is busy for a while spoils few readings of each and not all of one.
    """
    for work in works:
        repeat(work, 0.0, WARMUP)
    take = statistics.fmean if shared else statistics.median
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(READINGS):
        for work, into in zip(works, taken, strict=True):
            barrier.wait(BARRIER_S)
            into.append(take(repeat(work, part_seconds)))
    return taken


def repeat(work: Callable[[], None], at_least_seconds: float, at_least: int = 1) -> list[float]:
    """Seconds of each call of `work`, called until both minima are reached."""
    seconds: list[float] = []
    first = before = time.perf_counter()
    while len(seconds) < at_least or before - first < at_least_seconds:
        work()
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
    return seconds


if __name__ == "__main__":
    sys.exit(main())
