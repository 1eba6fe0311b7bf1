"""Peaks of memory in a profiler trace, by phase, from its [memory] events (profile_memory=True).

On CUDA "Total Allocated" and "Total Reserved" are the caching allocator's own sums after an allocation, in blocks; on a
CPU the count begins at zero with the profiler, so that what was made before is not in it. The phase of an allocation is
the annotation it lies in: Optimizer.step#, autograd's evaluate_function; everything else is before the backward pass,
whose highest instant is held against Moment.LOSS, where the head and the loss are at work.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reports.intake.kineto_parts import span_of
from reports.intake.spans import Span, union
from suite.record import Moment, Quantity, Sample

_CPU = 0
_BACKWARD = "autograd::engine::evaluate_function"
_OPTIMIZER = "Optimizer.step#"


@dataclass(frozen=True)
class TraceMemory:
    """What a trace says of one rank's memory."""

    samples: tuple[Sample, ...] = ()
    least_bytes: int | None = None
    """the least that was allocated within the steps, where the count began with the profiler; None on an accelerator"""


def traced_memory(rank: int, events: list[Mapping[str, Any]], steps: list[Span], notes: list[str]) -> TraceMemory:
    """The highest allocation of each phase within the `steps` (anywhere, without any), and the highest reserve."""
    listed = [found for event in events if event.get("name") == "[memory]" and (found := _reading(event))]
    devices = {found[0] for found in listed}
    if not devices:
        return TraceMemory()
    accelerators = {device for device in devices if device[0] != _CPU} or devices
    peaks = {device: max(each[2] for each in listed if each[0] == device) for device in accelerators}
    device = max(peaks, key=lambda each: peaks[each])
    _say(device, devices, rank, notes)
    own = [found for found in listed if found[0] == device]
    inside = [found for found in own if not steps or any(start <= found[1] <= end for start, end in steps)]
    phases = [(moment, union(_spans(events, mark))) for moment, mark in _MARKS]
    highest: dict[Moment, int] = {}
    for _, at, allocated, _, is_free in inside or own:
        if is_free:
            continue
        moment = next((moment for moment, spans in phases if _covers(spans, at)), Moment.LOSS)
        highest[moment] = max(allocated, highest.get(moment, 0))
    samples = [Sample(Quantity.MEMORY, value, rank, moment=moment) for moment, value in sorted(highest.items())]
    reserved = max(each[3] for each in own)
    if reserved:
        samples.append(Sample(Quantity.RESERVED, reserved, rank))
    return TraceMemory(tuple(samples), min(each[2] for each in inside or own) if device[0] == _CPU else None)


_MARKS = ((Moment.OPTIMIZER_PEAK, _OPTIMIZER), (Moment.BACKWARD_PEAK, _BACKWARD))


def _reading(event: Mapping[str, Any]) -> tuple[tuple[int, int], float, int, int, bool] | None:
    """(device type and number, time, allocated, reserved, is it a free?) of an event; None for what does not say."""
    about, at = event.get("args"), event.get("ts")
    if not isinstance(about, Mapping) or not isinstance(at, int | float):
        return None
    names = ("Device Type", "Device Id", "Total Allocated", "Total Reserved", "Bytes")
    kind, number, allocated, reserved, nbytes = (about.get(name, 0) for name in names)
    values = (kind, number, allocated, reserved, nbytes)
    if not all(type(value) is int for value in values) or min(allocated, reserved) < 0:
        return None
    return (kind, number), float(at), allocated, reserved, nbytes <= 0


def _say(device: tuple[int, int], devices: set[tuple[int, int]], rank: int, notes: list[str]) -> None:
    others = sum(each[0] == device[0] for each in devices) - 1
    if others:
        notes.append(f"rank {rank}: device {device[1]} is the fullest; {others} more are in the trace and not used")


def _spans(events: list[Mapping[str, Any]], mark: str) -> list[Span]:
    named = (event for event in events if str(event.get("name", "")).startswith(mark) and event.get("ph") == "X")
    found = (span_of(event) for event in named)
    return [span for span in found if span is not None]


def _covers(spans: list[Span], at: float) -> bool:
    place = bisect_right(spans, (at, float("inf"))) - 1
    return place >= 0 and at <= spans[place][1]
