"""A torch CUDA memory snapshot as a measurement: peaks of what is allocated, active and reserved.

Format: torch.cuda.memory._snapshot (torch/cuda/memory.py, its docstring; torch/csrc/cuda/memory_snapshot.cpp; actions
and states as c10/core/CachingDeviceAllocator.h has them in 2.13). The segments say what is held when the snapshot is
taken; the trace what led there. Replayed backwards from that end, the levels need neither the trace's beginning, which
a ring of max_entries overwrites, nor what was allocated before it was switched on.

Counted as allocated: bytes that were asked for (`size` of an alloc, `requested_size` of a block), from `alloc` to
`free_requested`, which is when torch's allocated_bytes falls. Active: the blocks themselves, each rounded up to 512
bytes, until `free_completed`, which a stream that still reads a block delays. Reserved: segments, and pages mapped into
expandable ones. Not counted: what a block has too much when it is not split (up to 1 MiB, of freed blocks the file does
not say it), so torch's own max_memory_allocated lies between the peak of requested bytes and what is active.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from memory.allocator import BLOCK_BYTES
from reports.intake.frames import moment_of
from reports.intake.packed import Document
from reports.intake.reading import Reading, count_of, mappings_of, named_rank
from suite.parse import SpecError, require, shown
from suite.record import Moment, Outcome, Quantity, Sample
from suite.units import bytes_text

SOURCE = "torch CUDA memory snapshot"
_ALLOCATED = "active_allocated"
#: a freed block that a stream still uses; the second is what torch's own docstring calls it
_PENDING = ("active_pending_free", "active_awaiting_free")
_SEGMENT = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}
_BLOCK = ("alloc", "free_requested", "free_completed")
_SILENT = ("snapshot", "oom")


@dataclass(frozen=True, slots=True)
class Levels:
    """Bytes of a device at one instant."""

    allocated: int
    active: int
    reserved: int

    def before(self, allocated: int, active: int, reserved: int) -> Levels:
        """The levels before an event that changed them by so much."""
        return Levels(self.allocated - allocated, self.active - active, self.reserved - reserved)

    def highest(self, other: Levels) -> Levels:
        """The higher of each."""
        return Levels(
            max(self.allocated, other.allocated), max(self.active, other.active), max(self.reserved, other.reserved)
        )


@dataclass(frozen=True)
class DeviceHistory:
    """What a snapshot tells of one device."""

    device: int
    end: Levels
    peak: Levels
    """the highest of each, not of one instant"""
    at_peak: Mapping[str, Any] | None
    """the event after which most is allocated; None: that is so before the first"""
    has_trace: bool
    oom: Mapping[str, Any] | None = None


def is_snapshot(data: Any) -> bool:
    """Has it what only a snapshot has?"""
    if isinstance(data, Mapping):
        return "segments" in data or "device_traces" in data
    return isinstance(data, list) and bool(data) and isinstance(data[0], Mapping) and "blocks" in data[0]


def read_snapshots(documents: Iterable[Document]) -> Reading:
    """One snapshot a process. SpecError, in one line, for what is no snapshot or does not add up.

    The rank is what the file's name says (rank3...), else the device's number where a snapshot holds several devices,
    else the snapshot's place among the files.
    """
    samples: list[Sample] = []
    notes: list[str] = []
    outcome, reason = Outcome.OK, ""
    settings: dict[str, Any] = {}
    for place, document in enumerate(documents):
        histories, settings = read_snapshot(document)
        for rank, history in _ranked(histories, document.name, place, notes):
            samples += _samples(rank, history, notes)
            if history.oom is not None:
                outcome, reason = Outcome.OOM, _oom_text(rank, history.oom)
    said = tuple(dict.fromkeys(notes))
    return Reading(SOURCE, tuple(samples), said, outcome=outcome, reason=reason, allocator=settings)


def read_snapshot(document: Document) -> tuple[list[DeviceHistory], dict[str, Any]]:
    """Every device that has segments or a trace, and the allocator's settings."""
    where = f"FILE: {shown(document.name)}"
    is_old = not isinstance(document.data, Mapping)  # a list of segments alone
    data = {"segments": document.data} if is_old else document.data
    require(is_snapshot(document.data), f"{where} is no snapshot: it has neither segments nor device_traces")
    segments = mappings_of(data.get("segments", []), f"{where}: segments")
    traces = data.get("device_traces", [])
    require(isinstance(traces, list | tuple), f"{where}: device_traces: expected a list a device, got {shown(traces)}")
    by_device: dict[int, list[Mapping[str, Any]]] = {}
    for number, segment in enumerate(segments):
        device = count_of(segment.get("device", 0), f"{where}: segments[{number}].device")
        by_device.setdefault(device, []).append(segment)
    used = sorted(by_device.keys() | {device for device, trace in enumerate(traces) if trace})
    require(bool(used), f"{where} is empty: no segment and no event; take it while the tensors live")
    histories = []
    for device in used:
        trace = traces[device] if device < len(traces) else []
        events = mappings_of(trace, f"{where}: device_traces[{device}]")
        held = _end(by_device.get(device, []), where)
        changes = _changes(events, held.waits, f"{where}: device_traces[{device}]")
        end = held.levels if device in by_device else _least_end(changes)
        histories.append(_replay(device, end, events, changes, where))
    settings = data.get("allocator_settings", {})
    return histories, dict(settings) if isinstance(settings, Mapping) else {}


@dataclass(frozen=True)
class _Held:
    """What a device holds when the snapshot is taken."""

    levels: Levels
    waits: bool
    """is there a freed block that a stream still uses?"""


def _end(segments: list[Mapping[str, Any]], where: str) -> _Held:
    """The sums over a device's segments and blocks."""
    allocated = active = reserved = 0
    waits = False
    for number, segment in enumerate(segments):
        place = f"{where}: segments[{number}]"
        reserved += count_of(segment.get("total_size"), f"{place}.total_size")
        for index, block in enumerate(mappings_of(segment.get("blocks", []), f"{place}.blocks")):
            size, state = count_of(block.get("size"), f"{place}.blocks[{index}].size"), block.get("state")
            if state == _ALLOCATED:
                requested = block.get("requested_size", size)
                allocated += count_of(requested, f"{place}.blocks[{index}].requested_size")
            if state == _ALLOCATED or state in _PENDING:
                active += size
            waits = waits or state in _PENDING
    return _Held(Levels(allocated, active, reserved), waits)


def _least_end(changes: list[tuple[int, int, int]]) -> Levels:
    """Where a device has events and no segments: the end that leaves the least at any instant, which is nothing."""
    sums = [list(accumulate(column, initial=0)) for column in zip(*changes, strict=True)]
    return Levels(*(levels[-1] - min(levels) for levels in sums))


def _replay(
    device: int, end: Levels, trace: list[Mapping[str, Any]], changes: list[tuple[int, int, int]], where: str
) -> DeviceHistory:
    """The levels after every event, from the last to the first, and the highest of each."""
    level, peak, at_peak = end, end, len(trace) - 1
    for number in range(len(trace) - 1, -2, -1):
        peak = peak.highest(level)
        if level.allocated == peak.allocated:  # of equal ones the first
            at_peak = number
        if number >= 0:
            level = level.before(*changes[number])
    require(
        min(level.allocated, level.reserved) >= 0,
        f"{where}: device {device}: the trace allocates more than its segments hold at the end"
        f" ({bytes_text(min(level.allocated, level.reserved))} at its start); the file is damaged, or actions were"
        " skipped (skip_actions)",
    )
    oom = next((event for event in reversed(trace) if event.get("action") == "oom"), None)
    return DeviceHistory(device, end, peak, trace[at_peak] if at_peak >= 0 else None, bool(trace), oom)


def _changes(trace: list[Mapping[str, Any]], waits: bool, where: str) -> list[tuple[int, int, int]]:
    """What each event does to allocated, active and reserved bytes.

    A block is no longer allocated at `free_requested`, no longer active at `free_completed`. Where the trace has none
    of one of the two (skip_actions), the other stands for both: unless a block `waits` at the end, or every completion
    is of a block from before the trace, whose request was before it too.
    """
    addresses = {
        action: {str(event.get("addr")) for event in trace if event.get("action") == action} for action in _BLOCK
    }
    allocated, requested, completed = addresses.values()
    has_request = bool(requested) or not completed & allocated
    has_completion = bool(completed) or waits
    changes = []
    for number, event in enumerate(trace):
        action = str(event.get("action"))
        if action in _SILENT:
            changes.append((0, 0, 0))
            continue
        if action not in _BLOCK and action not in _SEGMENT:
            known = ", ".join((*_BLOCK, *_SEGMENT, *_SILENT))
            raise SpecError(f"{where}[{number}].action: {shown(action)} is not known; known: {known}")
        size = count_of(event.get("size"), f"{where}[{number}].size")
        block = -(-size // BLOCK_BYTES) * BLOCK_BYTES
        if action == "alloc":
            changes.append((size, block, 0))
        elif action == "free_requested":
            changes.append((-size, 0 if has_completion else -block, 0))
        elif action == "free_completed":
            changes.append((0 if has_request else -size, -block, 0))
        else:
            changes.append((0, 0, size * _SEGMENT[action]))
    return changes


def _ranked(histories: list[DeviceHistory], name: str, place: int, notes: list[str]) -> list[tuple[int, DeviceHistory]]:
    """Each history with its rank."""
    said = named_rank(name)
    if len(histories) == 1:
        if said is None:
            notes.append(f"{name} does not say its rank: taken as rank {place}")
        return [(place if said is None else said, histories[0])]
    if said is None:
        devices = ", ".join(str(history.device) for history in histories)
        notes.append(f"{name} holds devices {devices}: taken as the ranks of these numbers")
        return [(history.device, history) for history in histories]
    fullest = max(histories, key=lambda history: history.peak.allocated)
    rest = ", ".join(f"{each.device} ({bytes_text(each.peak.allocated)})" for each in histories if each is not fullest)
    notes.append(f"{name}: rank {said} is on device {fullest.device}; not used: device {rest}")
    return [(said, fullest)]


def _samples(rank: int, history: DeviceHistory, notes: list[str]) -> list[Sample]:
    if not history.has_trace:
        notes.append(
            f"rank {rank}: no events, so no peak: allocated is what lived when the snapshot was taken, held against"
            f" {Moment.STEADY}; record with torch.cuda.memory._record_memory_history()"
        )
        return [
            Sample(Quantity.MEMORY, history.end.allocated, rank, moment=Moment.STEADY),
            Sample(Quantity.ACTIVE, history.end.active, rank),
            Sample(Quantity.RESERVED, history.end.reserved, rank),
        ]
    moment = moment_of(history.at_peak)
    return [
        Sample(Quantity.MEMORY, history.peak.allocated, rank, moment=moment),
        Sample(Quantity.ACTIVE, history.peak.active, rank),
        Sample(Quantity.RESERVED, history.peak.reserved, rank),
    ]


def _oom_text(rank: int, event: Mapping[str, Any]) -> str:
    size, free = event.get("size"), event.get("device_free")
    room = f", {bytes_text(free)} free" if type(free) is int else ""
    asked = bytes_text(size) if type(size) is int else "an unknown size"
    return f"rank {rank}: torch raised OutOfMemoryError: {asked} asked for{room}"
