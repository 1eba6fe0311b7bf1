"""What `parallelism.calibration.serving_asking` starts: reads one JSON request on standard input, prints one answer."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from parallelism.calibration.ranks import Meeting, measure_on_ranks

#: rounds whose readings are dropped
WARMUP = 1

if TYPE_CHECKING:
    from parallelism.calibration.serving_parts import Key

Rows = dict[str, list[float]]


def main() -> int:
    """Measure the request's passes with its number of ranks."""
    from parallelism.calibration.serving_frames import frames_from

    request = json.load(sys.stdin)
    results, machine = measure_on_ranks(request, _measured)
    first = results[0]
    answer = {
        **machine,
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


def _measured(request: dict[str, Any], meeting: Meeting, is_first: bool) -> dict[str, Any]:
    """Readings of every operator and core, without autograd."""
    import torch

    with torch.no_grad():
        return _readings(request, meeting, is_first)


def _readings(request: dict[str, Any], meeting: Meeting, is_first: bool) -> dict[str, Any]:
    """Readings of every operator and core, which take turns: a moment at which the machine is busy spoils few of
    each."""
    from parallelism.calibration.serving_frames import Frames
    from parallelism.calibration.serving_parts import Modules, Passing

    modules, frames = Modules(), Frames()
    passes = [Passing(row, modules) for row in request["passes"]]
    operators: dict[Key, list[float]] = defaultdict(list)
    cores: list[Rows] = [defaultdict(list) for _ in passes]
    around: Rows = defaultdict(list)
    for index in meeting.rounds(is_first, request["seconds"], WARMUP):
        kept = index >= WARMUP
        for each, core in zip(passes, cores, strict=True):
            found = each.readings()
            for key, seconds in found.operators.items():
                operators[key] += [seconds] * kept
            core["layer"] += [found.layer] * kept
            core["once"] += [found.once] * kept
        for name, seconds in frames.readings().items():
            around[name] += [seconds] * kept
    rows = [
        {"operator": operator, "shape": list(shape), "format": kind, "seconds": seconds}
        for (operator, shape, kind), seconds in operators.items()
    ]
    return {"operators": rows, "cores": cores, "frames": around}


if __name__ == "__main__":
    sys.exit(main())
