"""Devices by name. One file a family; every figure has its source beside it, and an unknown one is None."""

from __future__ import annotations

from suite.hardware import a100, a6000, ada, blackwell, h100, h200, mi300x, v100
from suite.hardware.cpu import this_machine
from suite.hardware.device import Device, DeviceKind, Figure, MatmulDtype, MatmulRates, matmul_dtype
from suite.parse import SpecError, nearest

_FAMILIES = (v100, a100, a6000, h100, h200, blackwell, mi300x, ada)

#: Every datasheet device by its own name; `cpu` is not here, it is whatever machine this runs on.
DEVICES: dict[str, Device] = {item.name: item for family in _FAMILIES for item in family.DEVICES}

_ALIASES: dict[str, Device] = {alias: item for item in DEVICES.values() for alias in item.aliases}


def device(name: str, where: str = "cluster.device") -> Device:
    """The device called `name`; `where` is the field that a refusal names.

    Raises SpecError for an unknown name, with near ones: a device is never taken for another.
    """
    if name == "cpu":
        return this_machine()
    found = DEVICES.get(name) or _ALIASES.get(name)
    if found is None:
        known = ["cpu", *DEVICES, *_ALIASES]
        raise SpecError(f"{where}: {name!r} is not known; {nearest(name.lower(), known)}")
    return found


def device_names() -> tuple[str, ...]:
    """Names that `device` takes, aliases left out."""
    return ("cpu", *DEVICES)


__all__ = [
    "DEVICES",
    "Device",
    "DeviceKind",
    "Figure",
    "MatmulDtype",
    "MatmulRates",
    "device",
    "device_names",
    "matmul_dtype",
]
