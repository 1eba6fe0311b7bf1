"""A torch.profiler trace as a measurement: step times, where a step's time goes, and peaks of memory.

Format: Chrome's trace events as torch.profiler's export_chrome_trace writes them (torch 2.11 to 2.13), times in
microseconds. A step is a ProfilerStep# annotation, from `prof.step()`; without these, the time from one optimizer
step's end to the next one's. Steps numbered below 3 are warm-up and dropped; a trace that has no others drops its first
alone. Where the host runs ahead of the device, a step is the device's: from the start of its annotation there to the
next one's.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from reports.intake.kineto_memory import traced_memory
from reports.intake.kineto_parts import MICRO, TraceParts, span_of, step_parts
from reports.intake.packed import Document
from reports.intake.reading import Reading, named_rank
from reports.intake.spans import Span
from reports.speed import WARMUP_STEPS
from suite.parse import require, shown
from suite.record import Quantity, Sample

SOURCE = "torch profiler trace"
#: the device's last step may end so much of a step after the host's before the host is said to run ahead
_AHEAD = 0.05
_STEP = re.compile(r"ProfilerStep#(\d{1,12})")
_OPTIMIZER = "Optimizer.step#"
_ON_DEVICE = "gpu_user_annotation"


@dataclass(frozen=True)
class RankTrace:
    """One process's trace: its steps in microseconds by number, warm-up dropped, and its events."""

    rank: int
    world_size: int | None
    steps: Mapping[int, Span]
    events: list[Mapping[str, Any]]

    @property
    def median(self) -> float:
        """Microseconds of its middle step; 0 without any."""
        return statistics.median(end - start for start, end in self.steps.values()) if self.steps else 0.0


def is_trace(data: Any) -> bool:
    """Has it what only a trace has?"""
    if isinstance(data, Mapping):
        return "traceEvents" in data
    return isinstance(data, list) and bool(data) and isinstance(data[0], Mapping) and "ph" in data[0]


def read_traces(documents: Iterable[Document]) -> Reading:
    """One trace a rank. SpecError, in one line, for what is none, for two of one rank, and for one that holds neither
    steps nor memory."""
    notes: list[str] = []
    traces = [_rank_trace(document, place, notes) for place, document in enumerate(documents)]
    samples: list[Sample] = []
    least: dict[int, int] = {}
    for trace in traces:
        same = sum(other.rank == trace.rank for other in traces)
        require(same == 1, f"FILE: {same} traces are of rank {trace.rank}; give one a rank")
        samples += _step_samples(trace)
        memory = traced_memory(trace.rank, trace.events, list(trace.steps.values()), notes)
        samples += memory.samples
        if memory.least_bytes is not None:
            least[trace.rank] = memory.least_bytes
    require(
        bool(samples),
        "FILE: the trace holds neither ProfilerStep# nor Optimizer.step# annotations nor [memory] events; call"
        " prof.step() after every step, and profile with profile_memory=True",
    )
    slowest = max(traces, key=lambda trace: trace.median)
    parts = _parts(slowest, notes)
    worlds = {trace.world_size for trace in traces if trace.world_size is not None}
    sizes = ", ".join(map(str, sorted(worlds)))
    require(len(worlds) <= 1, f"FILE: the traces are of jobs of {sizes} ranks; give those of one job")
    return Reading(
        SOURCE,
        tuple(samples),
        tuple(dict.fromkeys(notes)),
        parts.seconds if parts else {},
        parts.overlapped_seconds if parts else None,
        next(iter(worlds), None),
        least_bytes=least,
    )


def _rank_trace(document: Document, place: int, notes: list[str]) -> RankTrace:
    where, data = f"FILE: {shown(document.name)}", document.data
    require(is_trace(data), f"{where} is no trace: it has no traceEvents")
    head = data if isinstance(data, Mapping) else {"traceEvents": data}
    listed = head["traceEvents"]
    require(isinstance(listed, list), f"{where}: traceEvents: expected a list, got {shown(listed)}")
    events = [event for event in listed if isinstance(event, Mapping)]
    require(bool(events), f"{where} is empty: no event")
    about = head.get("distributedInfo")
    about = about if isinstance(about, Mapping) else {}
    rank, world = (about.get(key) if type(about.get(key)) is int else None for key in ("rank", "world_size"))
    if rank is None:
        rank = named_rank(document.name)
    if rank is None:
        notes.append(f"{document.name} does not say its rank: taken as rank {place}")
        rank = place
    steps = _without_warmup(_steps(events, document.name, notes), document.name, notes)
    return RankTrace(rank, world, steps, events)


def _steps(events: list[Mapping[str, Any]], name: str, notes: list[str]) -> dict[int, Span]:
    """Every step, by its number: the host's, or the device's where the host runs ahead."""
    host: dict[int, Span] = {}
    device: dict[int, Span] = {}
    updates: list[Span] = []
    kernels = 0.0
    for event in events:
        title, span = event.get("name"), span_of(event)
        if not isinstance(title, str) or span is None:
            continue
        if event.get("cat") == "kernel":
            kernels = max(kernels, span[1])
        elif found := _STEP.fullmatch(title):
            steps, number = device if event.get("cat") == _ON_DEVICE else host, int(found[1])
            before = steps.get(number, span)
            steps[number] = (min(before[0], span[0]), max(before[1], span[1]))
        elif title.startswith(_OPTIMIZER) and event.get("cat") != _ON_DEVICE:
            updates.append(span)
    if not host and not device:
        return _between(sorted(updates), name, notes)
    if not host or _is_ahead(host, device, kernels):
        notes.append(f"{name}: the host runs ahead of the device: steps are timed on the device")
        return _to_next(device, kernels)
    return dict(sorted(host.items()))


def _between(updates: list[Span], name: str, notes: list[str]) -> dict[int, Span]:
    """From one optimizer step's end to the next one's."""
    if len(updates) > 1:
        notes.append(f"{name}: no ProfilerStep#, so a step goes from one Optimizer.step#'s end to the next one's")
    ends = [end for _, end in updates]
    return dict(enumerate(pairwise(ends), start=1))


def _is_ahead(host: Mapping[int, Span], device: Mapping[int, Span], kernels: float) -> bool:
    """Does the last kernel end clearly after the host's last step? Only where the device has every step of the host."""
    if not host.keys() <= device.keys():
        return False
    step = statistics.median(end - start for start, end in host.values())
    return kernels - max(end for _, end in host.values()) > _AHEAD * step


def _to_next(steps: Mapping[int, Span], kernels: float) -> dict[int, Span]:
    """From each start to the next one's; the last to its own end, which no kernel outlives."""
    found = sorted(steps.items())
    last = found[-1][1]
    ends = [following[0] for _, following in found[1:]] + [min(last[1], max(last[0], kernels)) if kernels else last[1]]
    return {number: (span[0], end) for (number, span), end in zip(found, ends, strict=True)}


def _without_warmup(steps: Mapping[int, Span], name: str, notes: list[str]) -> dict[int, Span]:
    """The steps that are no warm-up."""
    kept = {number: span for number, span in steps.items() if number >= WARMUP_STEPS}
    if not kept and len(steps) > 1:
        kept = dict(list(steps.items())[1:])
    kept = kept or dict(steps)
    dropped = len(steps) - len(kept)
    if steps:
        notes.append(f"{name}: {len(kept)} steps, {dropped} dropped as warm-up")
    return kept


def _step_samples(trace: RankTrace) -> list[Sample]:
    """Seconds of every step kept. Reports drop what is numbered below WARMUP_STEPS, so numbers begin there at least."""
    shift = max(0, WARMUP_STEPS - min(trace.steps, default=0))
    return [
        Sample(Quantity.STEP_TIME, (end - start) * MICRO, trace.rank, number + shift)
        for number, (start, end) in trace.steps.items()
    ]


def _parts(trace: RankTrace, notes: list[str]) -> TraceParts | None:
    """Of its middle step, so that parts sum to a step that was."""
    if not trace.steps:
        return None
    ordered = sorted(trace.steps.values(), key=lambda span: span[1] - span[0])
    start, end = ordered[(len(ordered) - 1) // 2]
    found = step_parts(trace.events, start, end)
    if found is None:
        notes.append(f"rank {trace.rank}: no operator and no kernel lies in its middle step: no parts")
    elif not found.on_device:
        notes.append("no kernels are traced: parts are by the host's operators")
    return found
