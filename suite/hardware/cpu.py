"""This machine's CPU as a device. It has no datasheet peak: `suite.hardware.matrix_rate` measures its matrix rate."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from suite.hardware.device import Device, DeviceKind, Figure, MatmulRates

_MEASURED = Figure(None, "no datasheet figure: the matrix rate of this machine is measured")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@cache
def this_machine() -> Device:
    """The device `cpu`: memory and model of the machine that runs this, everything else not known."""
    from suite.environment import cpu_model  # here, so that asking for a GPU loads neither it nor psutil

    return Device(
        name="cpu",
        product=cpu_model() or "CPU of unknown model",
        kind=DeviceKind.CPU,
        memory_bytes=memory_limit(),
        peak_flops_per_second=MatmulRates(_MEASURED, _MEASURED, _MEASURED, _MEASURED, _MEASURED),
        memory_bandwidth_bytes_per_second=Figure(None, "not measured"),
        power_watts=Figure(None, "not measured"),
        context_bytes=Figure(0, "a CPU has no device context"),
        blas_workspace_bytes=Figure(0, "torch allocates none on a CPU"),
    )


def memory_limit(limit_file: Path = _CGROUP_LIMIT) -> Figure:
    """Bytes that processes here may use: physical memory, or the control group's limit where that is lower."""
    import psutil

    physical = psutil.virtual_memory().total
    try:
        limit = int(limit_file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no control group, or its limit is the word "max"
        return Figure(physical, "psutil: physical memory of this machine")
    if limit < physical:
        return Figure(limit, f"memory limit of this control group: {limit_file}")
    return Figure(physical, "psutil: physical memory of this machine")
