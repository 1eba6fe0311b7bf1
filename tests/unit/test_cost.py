"""A run's device-hours, price, energy and carbon by hand, and nothing invented."""

from __future__ import annotations

import math

import pytest

from parallelism.simulator.cost import Bill, Rates, bill, watts_of
from suite.hardware import device
from suite.parse import SpecError, from_mapping, to_mapping
from suite.units import days_text, energy_text, mass_text
from tests.unit.refusals import refused

pytestmark = pytest.mark.unit


def test_a_bill_by_hand() -> None:
    """8 devices for 30 h at 2.50; 700 W at 80 % with a PUE of 1.25: 168 kWh, at 0.5 kg each 84 kg."""
    rates = Rates(2.5, 700, "a datasheet", 0.8, 1.25, 0.5)
    found = bill(8, 30 * 3600, rates)
    assert (found.device_hours, found.price) == (240, 600)
    assert found.energy_j == pytest.approx(168 * 3.6e6)
    assert found.carbon_kg == pytest.approx(84)
    assert from_mapping(Rates, to_mapping(rates), "rates") == rates


def test_what_is_not_known_is_not_invented() -> None:
    assert bill(8, 3600, Rates()) == Bill(8, None, None, None)
    assert bill(8, 3600, Rates(kg_co2_per_kwh=0.4)).carbon_kg is None
    assert bill(1, 3600, Rates(watts=1000)).carbon_kg is None
    assert (energy_text(None), mass_text(None), days_text(None)) == ("n/a", "n/a", "n/a")


def test_watts_are_the_datasheets() -> None:
    watts, source = watts_of(device("h100-sxm"))
    assert watts == 700
    assert "datasheet" in source
    assert watts_of(device("cpu"))[0] is None


def test_numbers_as_text() -> None:
    assert [energy_text(kwh * 3.6e6) for kwh in (0.5, 2500, 3.4e6)] == ["0.50 kWh", "2.50 MWh", "3.40 GWh"]
    assert [mass_text(kg) for kg in (12, 99_670)] == ["12.00 kg", "99.67 t"]
    assert [days_text(hours * 3600) for hours in (36, 60)] == ["36.0 h", "2.5 days"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"price_per_device_hour": 0.0}, "rates.price_per_device_hour: must be positive and finite, got 0.0"),
        ({"watts": -700.0}, "rates.watts: must be positive and finite, got -700.0"),
        ({"kg_co2_per_kwh": math.nan}, "rates.kg_co2_per_kwh: must be positive and finite, got nan"),
        ({"utilisation": 1.1}, "rates.utilisation: a share above 0 and at most 1, got 1.1"),
        ({"pue": 0.9}, "rates.pue: must be at least 1, got 0.9"),
    ],
)
def test_rates_that_cannot_be_are_refused(values: dict[str, float], said: str) -> None:
    assert said in refused(Rates, **values)


def test_a_bill_for_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="devices: must be at least 1, got 0"):
        bill(0, 1, Rates())
    with pytest.raises(SpecError, match="run: must be finite and not negative, got -1 s"):
        bill(1, -1, Rates())
