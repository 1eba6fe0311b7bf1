"""What `parallelism.overheads.asking` starts: reads one JSON request on standard input, prints one JSON answer.

A request is families of probes, each with its ranks. A probe is a call that is timed as collectives are: after a little
work, all ranks beginning together, probes taking turns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from parallelism.overheads import checkpoints, context, divided, engine, messages, pipeline, replicas, sharding, tensor
from parallelism.zero.trainer import import_deepspeed
from suite.environment import others_cpu_seconds
from suite.hardware.collective_times_worker import agreed_count, forked, reading, work_between

Calls = Mapping[str, Callable[[], object]]

FAMILIES: dict[str, Callable[..., Calls]] = {
    "sharding": sharding.calls,
    "units": sharding.unit_calls,
    "divided": divided.calls,
    "checkpoints": checkpoints.calls,
    "context": context.calls,
    "replicas": replicas.calls,
    "pipeline": pipeline.calls,
    "messages": messages.calls,
    "tensor": tensor.calls,
    "engine": engine.calls,
}


def main() -> int:
    """Time every family of the request: an answer each, its probes' readings on every rank, by name."""
    torch.set_num_threads(1)  # a fork after threads have been started may hang
    request = json.load(sys.stdin)
    readings = request["readings"]
    start, before = time.monotonic(), others_cpu_seconds()
    answers = []
    for family in request["families"]:
        if family["name"] == "engine":
            import_deepspeed("cpu")  # once, not on every rank; engines come last
        results = forked(family["ranks"], measure, (family, readings))
        answers.append({name: [result[name] for result in results] for name in results[0]})
    others = (others_cpu_seconds() - before) / (time.monotonic() - start)
    print(json.dumps({"answers": answers, "other_cores": max(0.0, others)}))
    return 0


def measure(family: dict[str, Any], readings: int) -> dict[str, list[float]]:
    """This rank's readings of each probe of a family."""
    calls = FAMILIES[family["name"]](**family["arguments"])
    between, slot = work_between(family["between_s"]), family["seconds"] / len(calls) / readings
    counts = {name: agreed_count(call, between, slot) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(readings):
        for name, call in calls.items():
            taken[name].append(reading(call, between, counts[name]))
    return taken


if __name__ == "__main__":
    sys.exit(main())
