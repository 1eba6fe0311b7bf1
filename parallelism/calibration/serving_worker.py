"""What `parallelism.calibration.serving_asking` starts: reads one JSON request on standard input, prints one answer."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from parallelism.calibration.worker import LEAST, Meeting
from suite.environment import available_cores, cpu_model
from suite.hardware.matrix_rate_worker import BARRIER_S, collect, others_cpu_seconds

#: rounds whose readings are dropped
WARMUP = 1

if TYPE_CHECKING:
    from parallelism.calibration.serving_parts import Key

Rows = dict[str, list[float]]


def main() -> int:
    """Measure the request's passes with its number of ranks."""
    import torch

    from parallelism.calibration.serving_frames import frames_from

    request = json.load(sys.stdin)
    start, before = time.monotonic(), others_cpu_seconds()
    results = measure(request)
    others = (others_cpu_seconds() - before) / (time.monotonic() - start)
    first = results[0]
    answer = {
        "cpu": cpu_model() or "CPU",
        "cores": available_cores(),
        "torch": torch.__version__,
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "other_cores": max(0.0, others),
        "operators": [
            row | {"seconds": [value for each in results for value in each["operators"][index]["seconds"]]}
            for index, row in enumerate(first["operators"])
        ],
        "attention": [
            {name: [value for each in results for value in each["cores"][index][name]] for name in row}
            for index, row in enumerate(first["cores"])
        ],
        "overheads": frames_from(
            {name: [value for each in results for value in each["frames"][name]] for name in first["frames"]}
        ),
    }
    print(json.dumps(answer))
    return 0


def measure(request: dict[str, Any]) -> list[dict[str, Any]]:
    """What each of so many ranks at once finds."""
    context = multiprocessing.get_context("fork")
    meeting = Meeting(context.Barrier(request["ranks"]), context.Event())
    children, receivers = [], []
    for rank in range(request["ranks"]):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=run_rank, args=(sender, meeting, rank == 0, request), daemon=True)
        child.start()
        sender.close()  # before the next fork: with no other holder, a rank that dies is an end of file
        children.append(child)
        receivers.append(receiver)
    results: list[Any] = collect(receivers)
    for child in children:
        child.join()
    return results


def run_rank(sender: Connection[Any, Any], meeting: Meeting, is_first: bool, request: dict[str, Any]) -> None:
    """One rank: round after round of everything beside the other ranks, then the readings, or what went wrong."""
    import torch

    torch.set_num_threads(request["threads"])
    try:
        with torch.no_grad():
            sender.send(_measured(request, meeting, is_first))
    except Exception as error:  # whatever it is, the parent tells it in one line
        sender.send(f"{type(error).__name__}: {error}".splitlines()[0])


def _measured(request: dict[str, Any], meeting: Meeting, is_first: bool) -> dict[str, Any]:
    """Readings of every operator and core, which take turns: a moment at which the machine is busy spoils few of
    each."""
    from parallelism.calibration.serving_frames import Frames
    from parallelism.calibration.serving_parts import Modules, Passing

    modules, frames = Modules(), Frames()
    passes = [Passing(row, modules) for row in request["passes"]]
    operators: dict[Key, list[float]] = defaultdict(list)
    cores: list[Rows] = [defaultdict(list) for _ in passes]
    around: Rows = defaultdict(list)
    index, deadline = 0, time.monotonic() + request["seconds"]
    while True:
        if is_first and index >= WARMUP + LEAST and time.monotonic() > deadline:
            meeting.over.set()
        meeting.barrier.wait(BARRIER_S)
        if meeting.over.is_set():
            break
        kept = index >= WARMUP
        for each, core in zip(passes, cores, strict=True):
            found = each.readings()
            for key, seconds in found.operators.items():
                operators[key] += [seconds] * kept
            core["layer"] += [found.layer] * kept
            core["once"] += [found.once] * kept
        for name, seconds in frames.readings().items():
            around[name] += [seconds] * kept
        index += 1
    rows = [
        {"operator": operator, "shape": list(shape), "format": kind, "seconds": seconds}
        for (operator, shape, kind), seconds in operators.items()
    ]
    return {"operators": rows, "cores": cores, "frames": around}


if __name__ == "__main__":
    sys.exit(main())
