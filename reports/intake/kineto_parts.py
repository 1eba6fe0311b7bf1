"""Where a traced step's time goes: computation, communication that nothing hides, copies, idleness.

On a GPU by what its streams carry: kernels of NCCL (and its kin) communicate, other kernels and fills compute, copies
are copies. On a CPU by operators: those of gloo, MPI and c10d communicate, the others compute; a wait inside an
operator counts as that operator. What two do at once is given to the first of computation, communication, copies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from reports.intake.spans import Span, length, union, within, without

MICRO = 1e-6
_NETWORK_KERNEL = re.compile(r"(void )?(nccl|rccl|msccl|nvshmem)", re.IGNORECASE)
_NETWORK_OPERATOR = re.compile(r"(gloo:|mpi:|ucc:|c10d::|_c10d_functional::|record_param_comms|nccl:)")


class TracePart(StrEnum):
    """What a second of a traced step is spent on."""

    COMPUTE = "compute"
    COMMUNICATION = "exposed_communication"
    COPIES = "exposed_copies"
    IDLE = "idle"


@dataclass(frozen=True)
class TraceParts:
    """A step's parts, which sum to it, and the communication that computation hides. Seconds."""

    seconds: Mapping[str, float]
    overlapped_seconds: float
    on_device: bool


def step_parts(events: Iterable[Mapping[str, Any]], start: float, end: float) -> TraceParts | None:
    """The parts of the step from `start` to `end`, microseconds; None where no operator or kernel is traced in it."""
    computed: list[Span] = []
    sent: list[Span] = []
    copied: list[Span] = []
    kinds = ("kernel", "gpu_memset", "gpu_memcpy")
    listed = [event for event in events if event.get("ph") == "X"]
    on_device = any(event.get("cat") == "kernel" for event in listed)
    for event in listed:
        span, name = span_of(event), str(event.get("name", ""))
        if span is None or (event.get("cat") in kinds) is not on_device:
            continue
        if on_device:
            target = copied if event.get("cat") == "gpu_memcpy" else sent if _NETWORK_KERNEL.match(name) else computed
        elif _NETWORK_OPERATOR.match(name):
            target = sent
        elif event.get("cat") == "cpu_op":
            target = computed
        else:
            continue
        target.append(span)
    compute, network, copies = (within(union(spans), start, end) for spans in (computed, sent, copied))
    if not compute and not network:
        return None
    exposed = without(network, compute)
    moved = without(without(copies, compute), network)
    busy = length(compute) + length(exposed) + length(moved)
    parts = {
        TracePart.COMPUTE: length(compute),
        TracePart.COMMUNICATION: length(exposed),
        TracePart.COPIES: length(moved),
        TracePart.IDLE: end - start - busy,
    }
    seconds = {part.value: value * MICRO for part, value in parts.items()}
    return TraceParts(seconds, (length(network) - length(exposed)) * MICRO, on_device)


def span_of(event: Mapping[str, Any]) -> Span | None:
    """When a complete event began and ended, microseconds; None for one that does not say."""
    start, duration = event.get("ts"), event.get("dur")
    try:
        span = (float(start), float(start) + float(duration))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return span if math.isfinite(span[1]) and span[1] >= span[0] else None
