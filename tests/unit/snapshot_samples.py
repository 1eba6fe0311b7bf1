"""Memory snapshots in torch's own form, made by hand: an allocator that keeps no free blocks, and what it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MIB = 2**20
FRAMES = [{"filename": "/site-packages/torch/nn/modules/linear.py", "line": 130, "name": "forward"}]


def event(action: str, addr: int, size: int, **more: Any) -> dict[str, Any]:
    """A TraceEntry as torch 2.13 writes it."""
    rest = {"stream": 0, "time_us": 1, "compile_context": "N/A", "user_metadata": "", "pool_id": (0, 0), "frames": []}
    return {"action": action, "addr": addr, "size": size, **rest, **more}


def freed(addr: int, size: int) -> list[dict[str, Any]]:
    """The two events of a block that no stream waits for."""
    return [event("free_requested", addr, size), event("free_completed", addr, size)]


def block(size: int, state: str = "active_allocated", requested: int | None = None) -> dict[str, Any]:
    """A block of a segment."""
    return {"address": 0, "size": size, "requested_size": requested or size, "state": state, "frames": []}


def segment(blocks: Sequence[dict[str, Any]], total: int = 2 * MIB, device: int = 0) -> dict[str, Any]:
    """A segment; what its blocks leave is one free block."""
    used = sum(each["size"] for each in blocks)
    rest = [{"address": 0, "size": total - used, "requested_size": 0, "state": "inactive", "frames": []}]
    return {
        "device": device,
        "address": 0x7F0000000000,
        "total_size": total,
        "allocated_size": sum(each["size"] for each in blocks if each["state"] == "active_allocated"),
        "active_size": used,
        "requested_size": sum(each["requested_size"] for each in blocks),
        "stream": 0,
        "segment_type": "small",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "blocks": [*blocks, *(rest if used < total else [])],
    }


def snapshot(segments: Sequence[Any], *traces: Sequence[Any], **settings: Any) -> dict[str, Any]:
    """What torch.cuda.memory._snapshot() returns."""
    said = {"PYTORCH_CUDA_ALLOC_CONF": "", "max_split_size": -1, "expandable_segments": False, **settings}
    return {
        "segments": list(segments),
        "device_traces": [list(trace) for trace in traces],
        "allocator_settings": said,
        "external_annotations": [],
    }


@dataclass
class Heap:
    """Allocates at ever new addresses and remembers how much was asked for at every instant."""

    trace: list[dict[str, Any]] = field(default_factory=list)
    live: dict[int, int] = field(default_factory=dict)
    levels: list[int] = field(default_factory=lambda: [0])

    def allocate(self, size: int) -> None:
        """One block more."""
        addr = 512 * (len(self.trace) + 1)
        self.live[addr] = size
        self._add(event("alloc", addr, size))

    def free(self, which: int) -> None:
        """One of those that live."""
        addr = sorted(self.live)[which % len(self.live)]
        size = self.live.pop(addr)
        for each in freed(addr, size):
            self._add(each)

    def _add(self, entry: dict[str, Any]) -> None:
        self.trace.append(entry)
        self.levels.append(sum(self.live.values()))

    def dump(self, max_entries: int) -> dict[str, Any]:
        """The snapshot now, with the newest `max_entries` events."""
        blocks = [block(-(-size // 512) * 512, requested=size) for size in self.live.values()]
        kept = self.trace[len(self.trace) - max_entries :]
        return snapshot([segment(blocks, 64 * MIB)], kept)
