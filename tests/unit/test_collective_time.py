"""Seconds of collectives by hand: rings, trees, switches, nodes, shared adapters; and what holds for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelism.simulator.collective_time import collective_seconds, message_seconds, send_seconds
from parallelism.simulator.placement import group_of, groups_of
from suite.case import Case
from suite.collectives import Collective, Message
from suite.hardware.fabric import Fabric
from suite.layout import AXES, Layout
from suite.links import InSwitch, Level, Topology
from suite.models.presets import PRESETS
from suite.parse import SpecError
from suite.spec import Cluster

pytestmark = pytest.mark.unit

ONE = Fabric((Level("one", 0, 100e9, 1e-6),))
NVLINK, NETWORK = Level("nvlink", 8, 300e9, 2e-6), Level("network", 0, 25e9, 10e-6)
TWO = Fabric((NVLINK, NETWORK))
S = 4e8


@pytest.mark.parametrize(
    "collective, seconds",
    [
        (Collective.ALL_REDUCE, 2 * 3 / 4 * S / 100e9 + 6e-6),
        (Collective.ALL_GATHER, 3 / 4 * S / 100e9 + 3e-6),
        (Collective.REDUCE_SCATTER, 3 / 4 * S / 100e9 + 3e-6),
        (Collective.BROADCAST, S / 100e9 + 3e-6),
        (Collective.REDUCE, S / 100e9 + 3e-6),
        (Collective.ALL_TO_ALL, 3 * (S / 4 / 100e9 + 1e-6)),
        (Collective.SCATTER, 3 * (S / 4 / 100e9 + 1e-6)),
        (Collective.GATHER, 3 * (S / 4 / 100e9 + 1e-6)),
        (Collective.SEND, S / 100e9 + 1e-6),
    ],
)
def test_four_ranks_on_one_level(collective: Collective, seconds: float) -> None:
    assert collective_seconds(collective, S, range(4), ONE) == pytest.approx(seconds, rel=1e-12)


def test_a_rank_alone_and_nothing_to_say_take_no_time() -> None:
    assert collective_seconds(Collective.ALL_REDUCE, S, range(1), ONE) == 0
    assert collective_seconds(Collective.ALL_REDUCE, 0, range(4), ONE) == 0


@pytest.mark.parametrize("ranks", [2, 3, 8, 64])
def test_a_ring_sends_twice_n_minus_1_nths(ranks: int) -> None:
    """Payload so large that latency is nothing: 2 (n-1)/n S / B."""
    seconds = collective_seconds(Collective.ALL_REDUCE, 1e15, range(ranks), ONE)
    assert seconds == pytest.approx(2 * (ranks - 1) / ranks * 1e15 / 100e9, rel=1e-6)


def test_two_full_nodes_share_the_flow_over_all_their_adapters() -> None:
    """A ring of 16 leaves a node over 8 adapters, 200 GB/s in all. Hops but for one: 13 inside, 2 between."""
    flow, latency = 15 / 16 * S / (8 * 25e9), 13 * 2e-6 + 2 * 10e-6
    assert collective_seconds(Collective.ALL_GATHER, S, range(16), TWO) == pytest.approx(flow + latency, rel=1e-12)
    fast = Fabric((NVLINK, replace(NETWORK, bytes_per_second=100e9)))  # 800 GB/s between: NVLink bounds
    bound = 15 / 16 * S / 300e9 + latency
    assert collective_seconds(Collective.ALL_GATHER, S, range(16), fast) == pytest.approx(bound, rel=1e-12)


def test_large_all_reduces_of_four_nodes_take_the_ring_and_small_ones_the_tree() -> None:
    """A tree has a chain of 7 hops inside and log2(4) = 2 between, up and down, and 0.9 of the rate."""
    ring = 2 * 31 / 32 * 1e10 / 200e9 + 2 * (27 * 2e-6 + 4 * 10e-6)
    assert collective_seconds(Collective.ALL_REDUCE, 1e10, range(32), TWO) == pytest.approx(ring, rel=1e-12)
    tree = 2 * 4096 / (0.9 * 200e9) + 2 * (7 * 2e-6 + 2 * 10e-6)
    assert collective_seconds(Collective.ALL_REDUCE, 4096, range(32), TWO) == pytest.approx(tree, rel=1e-12)


def test_a_trees_latency_is_logarithmic() -> None:
    """64 nodes, a rank of each: 2 x 6 hops, where a ring has 2 x 63."""
    seconds = collective_seconds(Collective.ALL_REDUCE, 1, range(0, 512, 8), TWO)
    assert seconds == pytest.approx(2 * 6 * 10e-6, rel=1e-4)


def test_between_two_nodes_a_tree_sends_the_payload_once() -> None:
    """Which is less than a ring's 15/8 of it; inside, the chain sends it twice at 0.9 of 300 GB/s."""
    tree = 2 * S / (0.9 * 300e9) + 2 * (7 * 2e-6 + 1 * 10e-6)
    assert collective_seconds(Collective.ALL_REDUCE, S, range(16), TWO) == pytest.approx(tree, rel=1e-12)


def test_a_rank_of_each_node_has_its_own_adapter() -> None:
    seconds = S / 25e9 + 2 * 10e-6
    assert collective_seconds(Collective.ALL_REDUCE, S, range(0, 16, 8), TWO) == pytest.approx(seconds, rel=1e-12)
    assert collective_seconds(Collective.ALL_REDUCE, S, range(3, 16, 8), TWO) == pytest.approx(seconds, rel=1e-12)


def test_adapters_of_a_node_are_shared_by_the_groups_that_talk_at_once() -> None:
    """800 Gbit/s a node: eight groups of a rank a node get an eighth each, one group of all ranks the whole."""
    node = Fabric((NVLINK, replace(NETWORK, bytes_per_second=100e9, shared_by=8)))
    alone = collective_seconds(Collective.ALL_REDUCE, S, range(0, 16, 8), node)
    assert alone == pytest.approx(S / (100e9 / 8) + 2 * 10e-6, rel=1e-12)
    whole = collective_seconds(Collective.ALL_GATHER, S, range(16), node)
    assert whole == pytest.approx(15 / 16 * S / 100e9 + 13 * 2e-6 + 2 * 10e-6, rel=1e-12)


def test_groups_inside_a_node_share_nothing_on_a_switch() -> None:
    for first in (0, 4):
        seconds = collective_seconds(Collective.ALL_REDUCE, S, range(first, first + 4), TWO)
        assert seconds == pytest.approx(2 * 3 / 4 * S / 300e9 + 6 * 2e-6, rel=1e-12)


def test_an_all_to_all_is_bound_by_what_leaves_the_node() -> None:
    """16 ranks: 8 of 15 parts go over the adapter, one after another; 7 over NVLink meanwhile."""
    part = S / 16
    seconds = 8 * (part / 25e9 + 10e-6)
    assert collective_seconds(Collective.ALL_TO_ALL, S, range(16), TWO) == pytest.approx(seconds, rel=1e-12)


def test_a_send_goes_over_the_level_that_joins_the_two() -> None:
    assert send_seconds(S, 0, 7, TWO) == pytest.approx(S / 300e9 + 2e-6, rel=1e-12)
    assert send_seconds(S, 7, 8, TWO) == pytest.approx(S / 25e9 + 10e-6, rel=1e-12)


def test_a_pipelines_sends_share_an_adapter_with_those_that_cross_alone() -> None:
    """pp 4 x tp 2 on nodes of 4: of a node's 4 ranks 2 send across, so each has half of what the node has."""
    node = Fabric((replace(NVLINK, ranks=4), replace(NETWORK, bytes_per_second=100e9, shared_by=4)))
    seconds = collective_seconds(Collective.SEND, S, range(0, 8, 2), node)
    assert seconds == pytest.approx(S / 50e9 + 10e-6, rel=1e-12)


def test_a_mesh_gives_a_group_the_links_between_its_own() -> None:
    mesh = Fabric((Level("mesh", 8, 64e9, topology=Topology.MESH),))
    assert collective_seconds(Collective.ALL_REDUCE, S, (0, 1), mesh) == pytest.approx(S / 64e9, rel=1e-12)
    seconds = 2 * 7 / 8 * S / (7 * 64e9)
    assert collective_seconds(Collective.ALL_REDUCE, S, range(8), mesh) == pytest.approx(seconds, rel=1e-12)
    assert collective_seconds(Collective.SEND, S, range(8), mesh) == pytest.approx(S / 64e9, rel=1e-12)


def test_a_switch_that_adds_up_takes_large_all_reduces_of_enough_ranks() -> None:
    switch = InSwitch(from_ranks=5, shares=((1e6, 0.8),))
    fabric = Fabric((Level("nvlink", 8, 100e9, 1e-6, in_switch=switch),))
    added = S / 80e9 + 2e-6
    for ranks in (5, 8):
        assert collective_seconds(Collective.ALL_REDUCE, S, range(ranks), fabric) == pytest.approx(added, rel=1e-12)
    ring = 2 * 3 / 4 * S / 100e9 + 6e-6
    assert collective_seconds(Collective.ALL_REDUCE, S, range(4), fabric) == pytest.approx(ring, rel=1e-12)
    small = 2 * 7 / 8 * 1e5 / 100e9 + 14e-6
    assert collective_seconds(Collective.ALL_REDUCE, 1e5, range(8), fabric) == pytest.approx(small, rel=1e-12)


def test_a_group_wider_than_the_last_level_is_refused() -> None:
    with pytest.raises(SpecError) as error:
        collective_seconds(Collective.ALL_REDUCE, S, range(16), Fabric((NVLINK,)))
    assert str(error.value) == "cluster.links: ranks 7 and 8 talk, beyond the last level's ranks(8); add a level"


LAYOUTS = [Layout(pp=2, dp=2, cp=2, tp=3), Layout(pp=2, dp=2, fsdp=3, cp=2, tp=2), Layout(dp=4, tp=2), Layout(fsdp=8)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("axis", AXES)
def test_a_group_has_the_ranks_that_differ_in_its_axis_alone(layout: Layout, axis: str) -> None:
    """Against the grid's own coordinates; shards and whole replicas run over cp too."""
    joined = {"fsdp": {"fsdp", "cp"}, "dp": {"dp"} if layout.fsdp > 1 else {"dp", "cp"}}.get(axis, {axis})
    alike: dict[tuple[int, ...], list[int]] = {}
    for rank in range(layout.world_size):
        others = tuple(layout.place(name, rank) for name in AXES if name not in joined)
        alike.setdefault(others, []).append(rank)
    size = layout.world_size // len(alike)
    assert sorted(list(group.ranks) for group in groups_of(axis, size, layout)) == sorted(alike.values())
    for rank in range(layout.world_size):
        assert rank in group_of(axis, size, layout, rank).ranks


def message(collective: Collective, axis: str, ranks: int, count: int = 1) -> Message:
    return Message(collective, axis, ranks, int(S), count, "", "", "")


def case(layout: Layout, model: str) -> Case:
    return Case(PRESETS[model], layout, cluster=Cluster("h100-sxm"))


def test_a_message_is_timed_once_where_its_group_lies() -> None:
    made = case(Layout(dp=2, tp=8), "llama3-8b")
    inside = message_seconds(message(Collective.ALL_REDUCE, "tp", 8, count=5), made, TWO)
    assert inside == pytest.approx(2 * 7 / 8 * S / 300e9 + 14 * 2e-6, rel=1e-12)
    between = message_seconds(message(Collective.ALL_REDUCE, "dp", 2), made, TWO)
    assert between == pytest.approx(S / 25e9 + 2 * 10e-6, rel=1e-12)


def test_the_slowest_group_is_timed_unless_a_rank_is_named() -> None:
    """tp 3 on nodes of 4: ranks 0 to 2 stay inside, 3 to 5 do not."""
    fabric = Fabric((replace(NVLINK, ranks=4), NETWORK))
    made, reduce = case(Layout(dp=4, tp=3, sequence_parallel=False), "gpt2"), message(Collective.ALL_GATHER, "tp", 3)
    assert message_seconds(reduce, made, fabric, rank=0) == pytest.approx(2 / 3 * S / 300e9 + 4e-6, rel=1e-12)
    across = 2 / 3 * S / 25e9 + 2 * 10e-6  # 3 to 4 and 5 to 3
    assert message_seconds(reduce, made, fabric, rank=4) == pytest.approx(across, rel=1e-12)
    assert message_seconds(reduce, made, fabric) == pytest.approx(across, rel=1e-12)


LEVELS = st.builds(
    Level,
    st.just("level"),
    st.just(0),
    st.floats(1e8, 1e12),
    st.floats(0, 1e-4),
    st.floats(0.1, 1.0),
    shared_by=st.integers(1, 8),
    topology=st.sampled_from(Topology),
    shares=st.sampled_from([(), ((1e4, 0.1), (1e8, 0.9))]),
    in_switch=st.sampled_from([None, InSwitch(4, ((1e5, 0.5),))]),
)
SLOWER = st.sampled_from(["bytes_per_second", "efficiency", "latency_s", "shared_by"])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(LEVELS, min_size=1, max_size=3),
    st.lists(st.integers(2, 6), min_size=3, max_size=3),
    st.integers(2, 20),
    st.integers(1, 7),
    st.floats(1, 1e10),
    st.sampled_from(Collective),
    st.data(),
)
def test_nothing_gets_faster_when_a_level_gets_slower(
    levels: list[Level],
    factors: list[int],
    size: int,
    stride: int,
    payload: float,
    collective: Collective,
    data: st.DataObject,
) -> None:
    widths = [factors[0], factors[0] * factors[1]][: len(levels) - 1] + [0]
    nested = [replace(level, ranks=width) for level, width in zip(levels, widths, strict=True)]
    index, what = data.draw(st.integers(0, len(levels) - 1)), data.draw(SLOWER)
    factor = data.draw(st.integers(1, 5))
    old = getattr(nested[index], what)
    changed = old * factor if what == "shared_by" else old + factor * 1e-6 if what == "latency_s" else old / factor
    slower = [*nested[:index], replace(nested[index], **{what: changed}), *nested[index + 1 :]]
    ranks = range(0, size * stride, stride)
    before = collective_seconds(collective, payload, ranks, Fabric(tuple(nested)))
    assert collective_seconds(collective, payload, ranks, Fabric(tuple(slower))) >= before * (1 - 1e-12)
