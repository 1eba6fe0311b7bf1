"""How layouts are timed: many at once on a GPU, one by one on the CPU; and whole, once they are among the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parallelism.simulator.search import StepSearch
from parallelism.simulator.simulation import Simulation
from parallelism.simulator.simulators import simulator_of
from reports.plan.work import Prices
from suite.case import Case

if TYPE_CHECKING:
    from suite.hardware.calibration import Calibration


@dataclass(frozen=True)
class Timing:
    """Times of layouts of one model on one machine."""

    seconds: Callable[[Sequence[Case]], list[float]]
    """of each step, for a search: without compute that slows down beside communication"""
    whole: Callable[[Case], Simulation]
    prices: Prices | None
    """what bounds a layout's time before it is simulated; None where only whole simulations are known"""


def timing_of(base: Case, calibration: Calibration | None) -> Timing:
    """Of layouts of this case's model on its device. SpecError for the CPU without a calibration."""
    whole = simulator_of(base, calibration)
    if base.cluster.device == "cpu":
        return Timing(lambda cases: [whole(case).step_seconds for case in cases], whole, None)
    search = StepSearch()
    return Timing(search.seconds, search.simulation, search)
