"""Does it fit? The estimate's peak against a device's memory, with what the allocator may reserve on top."""

from __future__ import annotations

import math
from enum import StrEnum
from fractions import Fraction

from suite.case import Case
from suite.hardware import Device, DeviceKind

#: Fujii et al. (arXiv:2411.06465): in 454 runs on A100 and H100 none ran out of memory whose estimate was at most
#: 80 % of the device's memory. Reserved memory is bounded by the same figure until it is modelled by itself.
SAFE_SHARE = Fraction(4, 5)  # exact, so that a bound is right to the byte


class Verdict(StrEnum):
    """fits: at most 80 % of what is there; tight: it may or may not; oom: more than there is."""

    FITS = "fits"
    TIGHT = "tight"
    OOM = "oom"
    UNKNOWN = "unknown"  # the device's memory is not known


def reserved_upper_bytes(peak_bytes: int) -> int:
    """An upper bound of what a caching allocator reserves for a peak of allocated bytes: peak / 0.8."""
    return math.ceil(peak_bytes / SAFE_SHARE)


def available_bytes(case: Case, device: Device) -> int | None:
    """Whole bytes a rank may use: the device's memory less its context; on a CPU the machine's, shared by its ranks."""
    total = device.memory_bytes.value
    if total is None:
        return None
    if device.kind is DeviceKind.CPU:
        return int(total) // case.cluster.per_node
    return int(total - (device.context_bytes.value or 0))


def verdict_of(peak_bytes: int, available: int | None) -> Verdict:
    """Holds the peak against what is available."""
    if available is None:
        return Verdict.UNKNOWN
    if peak_bytes > available:
        return Verdict.OOM
    return Verdict.FITS if reserved_upper_bytes(peak_bytes) <= available else Verdict.TIGHT
