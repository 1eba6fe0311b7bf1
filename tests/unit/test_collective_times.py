"""Collective times are looked up by kind, group and size: as measured, or on the straight line between sizes."""

import pytest

from suite.collectives import Collective
from suite.hardware.collective_calibration import grid
from suite.hardware.collective_times import CollectiveTime, CollectiveTimes, Exchange, Form
from suite.parse import SpecError

pytestmark = pytest.mark.unit

GATHER = Collective.ALL_GATHER


def timed(payload: int, seconds: float, ranks: int = 2, groups: int = 1, form: Form = Form.DIRECT) -> CollectiveTime:
    return CollectiveTime(GATHER, form, ranks, groups, payload, seconds, 0.0, 1, 3e-4)


def asked(payload: int, ranks: int = 2, groups: int = 1, form: Form = Form.DIRECT) -> Exchange:
    return Exchange(GATHER, form, ranks, groups, payload)


#: 1 ms and 1 ns a byte
LINE = CollectiveTimes((timed(3_000_000, 4e-3), timed(1_000_000, 2e-3), timed(2_000_000, 3e-3)))


def test_a_size_that_was_measured_is_taken_as_it_is_and_needs_no_words() -> None:
    found = LINE.seconds(asked(2_000_000))
    assert (found.seconds, found.basis) == (3e-3, "")


@pytest.mark.parametrize(
    ("payload", "seconds", "how"),
    [(1_500_000, 2.5e-3, "interpolated"), (1000, 1.001e-3, "extrapolated"), (9_000_000, 10e-3, "extrapolated")],
)
def test_other_sizes_lie_on_latency_plus_bytes_over_bandwidth(payload: int, seconds: float, how: str) -> None:
    found = LINE.seconds(asked(payload))
    assert found.seconds == pytest.approx(seconds, rel=1e-9)
    assert how in found.basis


def test_a_falling_end_is_noise_and_is_held() -> None:
    times = CollectiveTimes((timed(1000, 3e-3), timed(2000, 2e-3)))
    assert times.seconds(asked(10_000)).seconds == 2e-3
    assert times.seconds(asked(10)).seconds == 3e-3


def test_a_group_alone_and_one_of_several_are_told_apart() -> None:
    times = CollectiveTimes((timed(1000, 1e-3), timed(1000, 5e-3, groups=2)))
    assert times.seconds(asked(1000, groups=2)).seconds == 5e-3
    nearest = times.seconds(asked(1000, groups=4))
    assert nearest.seconds == 5e-3
    assert "4 groups at once: measured with 2 at once" in nearest.basis


def test_a_form_or_a_number_of_ranks_that_was_not_measured_is_refused() -> None:
    with pytest.raises(SpecError, match="among 4 ranks: was not measured; that collective with 2 ranks alone"):
        LINE.seconds(asked(1000, ranks=4))
    with pytest.raises(SpecError, match=r"\(functional\).*was not measured; that collective at all"):
        LINE.seconds(asked(1000, form=Form.FUNCTIONAL))


def test_a_grid_has_each_exchange_once_and_the_quick_one_is_a_tenth_of_it() -> None:
    assert len(set(grid())) == len(grid())
    assert len(grid(quick=True)) * 5 < len(grid())
