"""A simulated step in the Trace Event format, which chrome://tracing and Perfetto open.

Format: Google, "Trace Event Format" (docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU): complete
events X, metadata events M, flow events s and f; times in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from parallelism.simulator.program import STREAMS, Label, Stream
from parallelism.simulator.simulation import Simulation
from suite.parse import require

#: events of a file that a browser still opens with ease
TRACE_LIMIT = 250_000
MICRO = 1e6

_STREAM_NAMES = {
    Stream.COMPUTE: "compute",
    Stream.HOST: "host",
    Stream.GATHER: "gather parameters",
    Stream.REDUCE: "reduce gradients",
    Stream.SEND: "send",
}


def write_trace(simulation: Simulation, path: str, limit: int = TRACE_LIMIT) -> None:
    """Write the step as JSON. SpecError for more tasks than `limit`, OSError for a file that cannot be written."""
    tasks = len(simulation.program.graph)
    require(
        tasks <= limit,
        f"--trace: {tasks} tasks are beyond --trace-limit({limit}); simulate fewer micro-batches, or raise it",
    )
    with Path(path).open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","otherData":')
        file.write(json.dumps({"case_id": simulation.case.case_id, "case": simulation.case.label}))
        file.write(',"traceEvents":[\n')
        for place, event in enumerate(trace_events(simulation)):
            file.write((",\n" if place else "") + json.dumps(event, allow_nan=False, separators=(",", ":")))
        file.write("\n]}\n")


def trace_events(simulation: Simulation) -> Iterator[dict[str, Any]]:
    """Names of ranks and streams, then a complete event a task that takes time, then a flow for each message sent.

    A process is a pipeline rank, a thread one of its streams.
    """
    graph = simulation.program.graph
    lasting = [task for task in range(len(graph)) if simulation.times.end[task] > simulation.times.start[task]]
    used = sorted({graph.queue[task] for task in lasting})
    for place in sorted({queue // STREAMS for queue in used}):
        yield _metadata("process_name", place, name=f"pipeline rank {place}")
        yield _metadata("process_sort_index", place, sort_index=place)
    for queue in used:
        place, stream = divmod(queue, STREAMS)
        yield _metadata("thread_name", place, stream, name=_STREAM_NAMES[Stream(stream)])
        yield _metadata("thread_sort_index", place, stream, sort_index=stream)
    for task in lasting:
        yield _complete(simulation, task)
    yield from _flows(simulation)


def _metadata(kind: str, place: int, stream: int = 0, **args: str | int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": place, "tid": stream, "ts": 0, "args": args}


def _complete(simulation: Simulation, task: int) -> dict[str, Any]:
    label, start = cast(Label, simulation.program.graph.label[task]), simulation.times.start[task]
    args: dict[str, Any] = {"part": label.part.value}
    if label.action is not None:
        args |= {
            "stage": label.action.stage,
            "pass": label.action.kind.name.lower(),
            "micro_batch": label.action.micro_batch,
        }
    if label.name:
        args["unit"] = label.name
    return {
        "ph": "X",
        "name": " ".join(filter(None, [str(label.action or ""), label.name or label.part.value])),
        "cat": label.part.value,
        "ts": start * MICRO,
        "dur": (simulation.times.end[task] - start) * MICRO,
        "pid": label.place,
        "tid": int(label.stream),
        "args": args,
    }


def _flows(simulation: Simulation) -> Iterator[dict[str, Any]]:
    """An arrow from each message to the task of another rank that waits for it; from what made it where sending takes
    no time."""
    graph, times = simulation.program.graph, simulation.times
    number = 0
    for task, after in enumerate(graph.after):
        for sent in after:
            if graph.queue[sent] % STREAMS != Stream.SEND:
                continue
            source = sent if times.end[sent] > times.start[sent] else graph.after[sent][0]
            if any(times.end[each] == times.start[each] for each in (source, task)):
                continue  # nothing is drawn there that an arrow could start or end at
            number += 1
            flow = {"name": "send", "cat": "send", "id": number}
            yield flow | {"ph": "s", **_at(simulation, source)}
            yield flow | {"ph": "f", "bp": "e", **_at(simulation, task)}


def _at(simulation: Simulation, task: int) -> dict[str, Any]:
    """A task's start on its stream: inside its slice."""
    place, stream = divmod(simulation.program.graph.queue[task], STREAMS)
    return {"ts": simulation.times.start[task] * MICRO, "pid": place, "tid": stream}
