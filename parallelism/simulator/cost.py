"""What a run takes in device-hours, and in money, energy and carbon where the user or a datasheet gives a rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from parallelism.simulator.failures import HOUR_S
from suite.hardware.device import Device
from suite.parse import require, setting, shown

KWH_J = 3.6e6


@dataclass(frozen=True)
class Rates:
    """What a device costs; what is not given is None, and nothing is taken for it."""

    price_per_device_hour: float | None = setting(None, "in whatever currency the user counts")
    watts: float | None = setting(None, "of one device at full load")
    watts_source: str = setting("", "where the watts come from")
    utilisation: float = setting(1.0, "share of those watts that is drawn on average")
    pue: float | None = setting(None, "power usage effectiveness: the building's energy over the devices'")
    kg_co2_per_kwh: float | None = setting(None, "carbon dioxide of a kilowatt-hour")

    def __post_init__(self) -> None:
        for name in ("price_per_device_hour", "watts", "kg_co2_per_kwh"):
            value = getattr(self, name)
            good = value is None or 0 < value < math.inf
            require(good, f"rates.{name}: must be positive and finite, got {shown(value)}")
        good = 0 < self.utilisation <= 1
        require(good, f"rates.utilisation: a share above 0 and at most 1, got {shown(self.utilisation)}")
        good = self.pue is None or 1 <= self.pue < math.inf
        require(good, f"rates.pue: must be at least 1, got {shown(self.pue)}")


@dataclass(frozen=True)
class Bill:
    """What a run takes. None: no rate is known."""

    device_hours: float
    price: float | None
    energy_j: float | None
    carbon_kg: float | None


def watts_of(device: Device) -> tuple[float | None, str]:
    """A device's power by its datasheet, and where that is from."""
    return device.power_watts.value, device.power_watts.source


def bill(devices: int, wall_s: float, rates: Rates) -> Bill:
    """What so many devices, spares among them, take in so many seconds, whether they train, restart or wait.

    Energy is watts x utilisation x PUE x time in joules; without a PUE the devices' own. Not counted beside the watts
    given: hosts, network, storage. SpecError for no devices or no time.
    """
    require(devices >= 1, f"devices: must be at least 1, got {devices}")
    require(0 <= wall_s < math.inf, f"run: must be finite and not negative, got {shown(wall_s)} s")
    hours = devices * wall_s / HOUR_S
    price = None if rates.price_per_device_hour is None else hours * rates.price_per_device_hour
    energy = None
    if rates.watts is not None:
        energy = devices * wall_s * rates.watts * rates.utilisation * (rates.pue or 1.0)
    carbon = None
    if energy is not None and rates.kg_co2_per_kwh is not None:
        carbon = energy / KWH_J * rates.kg_co2_per_kwh
    return Bill(hours, price, energy, carbon)
