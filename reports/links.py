"""The links of shipped devices, as `models --devices` shows them."""

from __future__ import annotations

from typing import Any

from suite.hardware import DEVICES
from suite.hardware.links import LINKS
from suite.links import Level
from suite.parse import to_mapping
from suite.units import percent_text, seconds_text

#: devices of a node; no shipped one has more
WIDEST_NODE = 8
#: measured curves, too long to be read in a list
_CURVES = ("shares", "in_switch")


def links_of(name: str) -> list[dict[str, Any]]:
    """A device's levels of links, innermost first, each figure with its source; empty where none are known."""
    return [{key: value for key, value in to_mapping(level).items() if key not in _CURVES} for level in _levels(name)]


def link_rows() -> list[dict[str, Any]]:
    """A row a level, of the devices that have it in common."""
    devices: dict[Level, list[str]] = {}
    for name in DEVICES:
        for level in _levels(name):
            devices.setdefault(level, []).append(name)
    return [
        {
            "level": level.name,
            "ranks": level.ranks or "all",
            "bandwidth_bytes_per_second": level.bytes_per_second,
            "of": f"{level.shared_by} devices"
            if level.shared_by > 1
            else "a device"
            if level.is_switched
            else "a link",
            "latency": seconds_text(level.latency_s),
            "achieved": percent_text(level.efficiency),
            "devices": " ".join(names),
            "source": level.source,
        }
        for level, names in devices.items()
    ]


def _owner(level: Level) -> str:
    if level.shared_by > 1:
        return f"{level.shared_by} devices"
    return "a device" if level.is_switched else "a link"


def _levels(name: str) -> tuple[Level, ...]:
    return LINKS[name].fabric(WIDEST_NODE).levels if name in LINKS else ()
