"""Links: what a Case may say of them, what is refused, and what shipped devices have."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from suite.case import Case, case_from
from suite.hardware import DEVICES
from suite.hardware.fabric import Fabric
from suite.hardware.links import ALONE, LINKS, fabric_of
from suite.layout import Layout
from suite.links import InSwitch, Level, Topology
from suite.models.presets import PRESETS
from suite.parse import SpecError
from suite.spec import Cluster
from tests.unit.refusals import refused

pytestmark = pytest.mark.unit

NVLINK, NETWORK = Level("nvlink", 8, 300e9, 3e-6), Level("ib", 0, 25e9, 8e-6)
GIVEN = {"name": "ib", "ranks": 16, "bytes_per_second": 25e9}


def case(layout: Layout, **cluster: object) -> Case:
    return Case(PRESETS["gpt-1m"], layout, cluster=Cluster(**cluster))  # type: ignore[arg-type]


def test_a_level_is_read_from_its_text() -> None:
    assert Level.from_text("nvlink:8:300e9:3e-6") == NVLINK
    assert Level.from_text("ib:*:100e9/8:8e-6") == replace(NETWORK, bytes_per_second=100e9, shared_by=8)
    assert Level.from_text("ib:*:25e9:8e-6:0.9") == replace(NETWORK, efficiency=0.9)


@pytest.mark.parametrize(
    "text, words",
    [
        ("nvlink:8:300e9", "--links: 'nvlink:8:300e9' is not a level; accepted: name:ranks:"),
        ("nvlink:eight:300e9:3e-6", "'nvlink:eight:300e9:3e-6' is not a level"),
        (":8:300e9:3e-6", "is not a level"),
        ("nvlink:0:300e9:3e-6", "--links.nvlink: ranks must be at least 1, or *, got 0"),
        ("nvlink:-8:300e9:3e-6", "ranks must be at least 1, or *, got -8"),
        ("nvlink:8:0:3e-6", "links.nvlink: bytes_per_second must be positive, got 0.0"),
        ("nvlink:8:-3e9:3e-6", "bytes_per_second must be positive, got -3000000000.0"),
        ("nvlink:8:inf:3e-6", "bytes_per_second must be positive, got inf"),
        ("nvlink:8:nan:3e-6", "bytes_per_second must be positive, got nan"),
        ("nvlink:8:3e9:-1e-6", "latency_s must not be negative: -1e-06"),
        ("nvlink:8:3e9/0:1e-6", "shared_by must be at least 1, got 0"),
        ("nvlink:8:3e9/:1e-6", "is not a level"),
        ("nvlink:8:3e9:1e-6:1.1", "links.nvlink: efficiency must be at most 1, got 1.1"),
        ("nvlink:8:3e9:1e-6:0", "efficiency must be positive, got 0.0"),
    ],
)
def test_a_level_that_cannot_be_is_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError) as error:
        Level.from_text(text, "--links")
    assert words in str(error.value)


def test_what_else_a_level_refuses() -> None:
    level = {"name": "x", "bytes_per_second": 1.0}
    assert refused(Level, ranks=-1, **level) == "links.x: ranks must be at least 1, or 0 for all, got -1"
    assert refused(Level, ranks=2, shared_by=0, **level) == "links.x: shared_by must be at least 1, got 0"
    assert "must be positive, got 0.0, 1.0" in refused(Level, ranks=2, shares=((0.0, 1.0),), **level)
    assert "must ascend, got [2.0, 1.0]" in refused(Level, ranks=2, shares=((2.0, 1.0), (1.0, 1.0)), **level)
    assert "must not be empty" in refused(InSwitch, from_ranks=4, shares=())


@pytest.mark.parametrize(
    "levels, words",
    [
        ((), "links: a fabric needs at least one level"),
        ((NVLINK, replace(NETWORK, ranks=12)), "links.ib: ranks(12) must be a multiple of nvlink's ranks(8)"),
        ((NVLINK, replace(NETWORK, ranks=8)), "links.ib: ranks(8) must be a multiple of nvlink's ranks(8)"),
        ((NVLINK, replace(NETWORK, ranks=4)), "links.ib: ranks(4) must be"),
        ((NETWORK, NVLINK), "links.ib: ranks(all) leaves nothing to nvlink"),
    ],
)
def test_levels_that_do_not_nest_are_refused(levels: tuple[Level, ...], words: str) -> None:
    with pytest.raises(SpecError) as error:
        Fabric(levels)
    assert words in str(error.value)
    if levels:
        assert words in refused(Cluster, links=levels)


def test_a_case_takes_links_as_objects_and_keeps_them() -> None:
    made = case_from({"model": "gpt-1m", "layout": {"dp": 16}, "cluster": {"links": [{**GIVEN, "latency_s": 1e-6}]}})
    assert made.cluster.links == (Level("ib", 16, 25e9, 1e-6),)
    assert case_from(json.loads(json.dumps(made.to_mapping()))) == made
    with pytest.raises(SpecError, match=r"cluster\.links\[0\]\.rank: unknown key"):
        case_from({"model": "gpt-1m", "cluster": {"links": [{"rank": 8}]}})
    with pytest.raises(SpecError, match=r"cluster\.links\[0\]\.bytes_per_second: missing"):
        case_from({"model": "gpt-1m", "cluster": {"links": [{"ranks": 8}]}})


def test_links_name_a_case_only_where_they_are_given() -> None:
    """The id of the default suite's first case, from before there were links."""
    from suite.cases import suite_of

    first = suite_of("default")[0]
    assert first.case_id == "e55b64adbe3b"
    assert replace(first, cluster=replace(first.cluster, links=(NETWORK,))).case_id != first.case_id


def test_given_links_come_before_the_devices_own() -> None:
    assert fabric_of(case(Layout(dp=16), device="h100-sxm", links=(NVLINK, NETWORK))).levels == (NVLINK, NETWORK)


def test_a_device_without_known_links_is_refused_where_ranks_talk() -> None:
    for name in ("rtx-4070-ti-super", "cpu"):
        with pytest.raises(SpecError) as error:
            fabric_of(case(Layout(dp=2), device=name))
        assert str(error.value).startswith(f"cluster.links: missing; no links are known for device {name!r}")
        assert fabric_of(case(Layout(), device=name)) == ALONE


def test_nodes_narrow_what_is_inside_them() -> None:
    def widths(device: str, nodes: int, per_node: int) -> tuple[int, ...]:
        return fabric_of(case(Layout(dp=nodes * per_node), device=device, nodes=nodes, per_node=per_node)).widths

    assert widths("a100-80gb-sxm", 2, 8) == (8, 0)
    assert widths("a100-80gb-sxm", 2, 4) == (4, 0)
    assert widths("a100-80gb-sxm", 4, 1) == (0,)
    assert widths("a100-80gb-sxm", 1, 16) == (8, 0)  # no A100 board holds 16: two nodes of 8
    assert widths("a100-80gb-pcie", 2, 4) == (2, 4)
    assert widths("a100-80gb-pcie", 2, 2) == (2,)
    assert widths("a100-80gb-pcie", 1, 3) == (3,)  # pairs do not divide it
    assert widths("a100-80gb-pcie", 2, 1) == (1,)  # nobody knows what joins such nodes
    assert widths("gb200", 2, 4) == (72, 0)  # its NVLink goes beyond the node
    network = fabric_of(case(Layout(dp=8), device="v100-32gb-sxm", nodes=2, per_node=4)).levels[-1]
    assert (network.bytes_per_second, network.shared_by) == (50e9, 4)


def test_every_shipped_device_but_two_has_links_and_every_level_a_source() -> None:
    assert set(DEVICES) - set(LINKS) == {"rtx-4070-ti-super", "rtx-a6000"}
    for links in LINKS.values():
        fabric = links.fabric(8)
        assert all(level.source for level in fabric.levels)


@pytest.mark.parametrize(
    "device, one_way",
    [("v100-32gb-sxm", 150e9), ("a100-80gb-sxm", 300e9), ("h100-sxm", 450e9), ("b200", 900e9), ("mi300x", 448e9 / 7)],
)
def test_datasheets_links_one_way(device: str, one_way: float) -> None:
    level = LINKS[device].fabric(8).levels[0]
    assert (level.bytes_per_second, level.ranks) == (one_way, 8)
    assert (level.topology is Topology.MESH) == (device == "mi300x")
