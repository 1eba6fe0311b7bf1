"""Published bus bandwidths against shipped devices' links: at their own points, between them, at other widths."""

from __future__ import annotations

import pytest

from parallelism.simulator.collective_time import collective_seconds
from suite.collectives import Collective
from suite.hardware.busbw import A100_ALL_REDUCE, H200_ALL_REDUCE, Points, ring_shares
from suite.hardware.fabric import Fabric
from suite.hardware.links import LINKS
from suite.links import Level

pytestmark = pytest.mark.published


def bus(collective: Collective, payload: float, ranks: range, fabric: Fabric) -> float:
    """nccl-tests' bus bandwidth."""
    turns = 2 if collective is Collective.ALL_REDUCE else 1
    return turns * (len(ranks) - 1) / len(ranks) * payload / collective_seconds(collective, payload, ranks, fabric)


@pytest.mark.parametrize(
    "device, points", [("a100-80gb-sxm", A100_ALL_REDUCE), ("h200-sxm", H200_ALL_REDUCE)], ids=["a100", "h200"]
)
def test_published_curves_come_back_at_their_own_points(device: str, points: Points) -> None:
    fabric = LINKS[device].fabric(8)
    for payload, published in points:
        assert bus(Collective.ALL_REDUCE, payload, range(8), fabric) == pytest.approx(published, rel=1e-9)


@pytest.mark.parametrize(
    "points, rate, mean, worst",
    [(A100_ALL_REDUCE, 300e9, 0.055, 0.19), (H200_ALL_REDUCE, 450e9, 0.022, 0.092)],
    ids=["a100", "h200"],
)
def test_between_its_points_a_curve_errs_by_so_much(points: Points, rate: float, mean: float, worst: float) -> None:
    """Each point from the others, four times as far apart. The A100's kink at 8 to 16 MiB is its worst."""
    errors = []
    for index in range(1, len(points) - 1):
        rest = (*points[:index], *points[index + 1 :])
        fabric = Fabric((Level("nvlink", 8, rate, 1.9e-6, shares=ring_shares(rest, 8, rate, 1.9e-6)),))
        payload, published = points[index]
        errors.append(abs(bus(Collective.ALL_REDUCE, payload, range(8), fabric) / published - 1))
    assert sum(errors) / len(errors) < mean
    assert max(errors) < worst


@pytest.mark.parametrize(
    "row, device, ranks, collective, payload, published",
    [
        ("hw-0080", "h200-sxm", 4, Collective.ALL_REDUCE, 2**33, 363.3e9),
        ("hw-0082", "h200-sxm", 5, Collective.ALL_REDUCE, 2**33, 414.2e9),
        ("hw-0084", "h200-sxm", 6, Collective.ALL_REDUCE, 2**33, 435.6e9),
        ("hw-0086", "h200-sxm", 7, Collective.ALL_REDUCE, 2**33, 460.0e9),
        ("hw-0088", "h200-sxm", 8, Collective.ALL_REDUCE, 2**33, 473.1e9),
        ("hw-0090", "b200", 4, Collective.ALL_REDUCE, 2**33, 673.2e9),
        ("hw-0092", "b200", 5, Collective.ALL_REDUCE, 2**33, 677.8e9),
        ("hw-0094", "b200", 6, Collective.ALL_REDUCE, 2**33, 778.2e9),
        ("hw-0098", "b200", 8, Collective.ALL_REDUCE, 2**33, 838.0e9),
        ("hw-0102", "h200-sxm", 8, Collective.ALL_GATHER, 2**34, 361.4e9),
        ("hw-0103", "h200-sxm", 8, Collective.REDUCE_SCATTER, 2**34, 362.9e9),
        ("hw-0104", "h200-sxm", 32, Collective.ALL_REDUCE, 2**32, 364.87e9),
        ("hw-0106", "mi300x", 2, Collective.ALL_REDUCE, 2**32, 47.671e9),
        ("hw-0107", "mi300x", 8, Collective.ALL_REDUCE, 2**32, 312.912e9),
    ],
)
def test_published_bandwidths_at_other_widths(
    row: str, device: str, ranks: int, collective: Collective, payload: int, published: float
) -> None:
    """Within 6.5 %: the switch's time is taken not to depend on ranks (5 ranks: +5 %), a mesh's share nor (-6 %)."""
    assert bus(collective, payload, range(ranks), LINKS[device].fabric(8)) == pytest.approx(published, rel=0.065)
