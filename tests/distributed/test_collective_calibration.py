"""Collectives are measured on forked ranks: every kind of the quick grid's two ranks runs, and takes time."""

import pytest

from suite.hardware.collective_calibration import KINDS, measure_collectives
from suite.hardware.collective_times import CollectiveTimes, Exchange

pytestmark = pytest.mark.distributed


def test_every_kind_is_measured_and_found_again() -> None:
    wanted = tuple(Exchange(*kind, 2, 1, 4096) for kind in KINDS)
    times, other_cores = measure_collectives(wanted, 0.5)
    assert {time.exchange for time in times} == set(wanted)
    assert other_cores >= 0
    assert all(time.readings == 14 for time in times)  # seven of each rank
    assert max(time.seconds for time in times) > 1e-6  # a wake-up alone takes longer
    assert CollectiveTimes(times).seconds(wanted[0]).basis == ""
