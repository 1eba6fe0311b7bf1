"""The event engine: queues, dependencies and sharing, by hand arithmetic and by invariants."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallelism.simulator.engine import Cores, Deadlock, Graph, Interference, run
from suite.parse import SpecError

pytestmark = pytest.mark.unit


def graph_of(*tasks: tuple[int, float, tuple[int, ...]]) -> Graph:
    """(queue, seconds, after) each."""
    graph = Graph()
    for queue, seconds, after in tasks:
        graph.add(queue, seconds, after)
    return graph


def test_a_queue_takes_its_tasks_in_order_and_waits_for_others() -> None:
    # queue 0: 2 s, then 1 s that waits for queue 1's 5 s
    times = run(graph_of((0, 2.0, ()), (1, 5.0, ()), (0, 1.0, (1,)), (1, 1.0, (0,))))
    assert times.start == [0.0, 0.0, 5.0, 5.0]
    assert times.end == [2.0, 5.0, 6.0, 6.0]
    assert times.total == 6.0


def test_three_processes_on_two_cores_take_half_as_long_again() -> None:
    graph = graph_of((0, 1.0, ()), (1, 1.0, ()), (2, 1.0, ()))
    assert run(graph, [Cores((0, 1, 2), cores=2)]).end == pytest.approx([1.5] * 3)


def test_cores_are_shared_only_while_they_are_wanted() -> None:
    # all three at 2/3 speed until the short one (0.5 s) is done at 0.75 s; the others have 0.5 s left, at full speed
    graph = graph_of((0, 1.0, ()), (1, 1.0, ()), (2, 0.5, ()))
    assert run(graph, [Cores((0, 1, 2), cores=2)]).end == pytest.approx([1.25, 1.25, 0.75])


def test_ranks_of_two_threads_want_two_cores_each() -> None:
    graph = graph_of((0, 1.0, ()), (1, 1.0, ()))
    assert run(graph, [Cores((0, 1), cores=2, demand=2)]).end == pytest.approx([2.0, 2.0])


def test_compute_pays_for_communication_beside_it() -> None:
    # 1 s of communication, in which 1/1.5 s of compute gets done; the rest, 4/3 s, at full speed
    graph = graph_of((0, 2.0, ()), (1, 1.0, ()))
    assert run(graph, [Interference(0, (1, 2), slowdown=1.5)]).end == pytest.approx([1 + 4 / 3, 1.0])


def test_two_kinds_of_communication_share_the_link() -> None:
    # both at half speed until the shorter is done at 2 s; the longer has 1 s left
    graph = graph_of((1, 1.0, ()), (2, 2.0, ()))
    assert run(graph, [Interference(0, (1, 2), slowdown=1.0)]).end == pytest.approx([2.0, 3.0])


def test_a_task_of_no_length_lets_others_go_on_at_once() -> None:
    graph = graph_of((0, 0.0, ()), (0, 1.0, (0,)), (1, 0.0, (1,)))
    assert run(graph, [Cores((0, 1), cores=1)]).end == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("sharing", [[], [Cores((0, 1), cores=1)]])
def test_tasks_that_wait_for_each_other_are_refused(sharing: list[Cores]) -> None:
    graph = graph_of((0, 1.0, ()), (1, 1.0, ()))
    graph.wait(0, 1)
    graph.wait(1, 0)
    with pytest.raises(Deadlock, match="2 tasks wait for each other"):
        run(graph, sharing)


def test_a_negative_time_is_refused() -> None:
    with pytest.raises(SpecError, match=r"-1\.0 s"):
        run(graph_of((0, -1.0, ())))


SECONDS = st.floats(0.0, 10.0)
QUEUES = 4


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any graph in which tasks wait for earlier ones."""
    graph = Graph()
    for task in range(draw(st.integers(1, 14))):
        after = draw(st.sets(st.integers(0, task - 1), max_size=3)) if task else set()
        graph.add(draw(st.integers(0, QUEUES - 1)), draw(SECONDS), sorted(after))
    return graph


@given(graphs(), st.data())
def test_a_longer_task_never_makes_a_step_shorter(graph: Graph, data: st.DataObject) -> None:
    task = data.draw(st.integers(0, len(graph) - 1))
    before = run(graph)
    graph.seconds[task] += data.draw(SECONDS)
    after = run(graph)
    assert all(late >= early for late, early in zip(after.end, before.end, strict=True))


@given(graphs())
def test_a_step_is_at_least_its_busiest_queue_and_at_most_everything_in_turn(graph: Graph) -> None:
    busy = [sum(s for s, q in zip(graph.seconds, graph.queue, strict=True) if q == queue) for queue in range(QUEUES)]
    total = run(graph).total
    assert max(busy) <= total * (1 + 1e-12)
    assert total <= sum(busy) * (1 + 1e-12) + 1e-12


@given(graphs())
def test_sharing_that_never_bites_changes_nothing(graph: Graph) -> None:
    shared = run(graph, [Cores(tuple(range(QUEUES)), cores=QUEUES)])
    assert shared.end == pytest.approx(run(graph).end)


@given(graphs(), st.floats(0.5, 4.0))
def test_work_is_conserved_on_shared_cores(graph: Graph, cores: float) -> None:
    """No schedule does more than `cores` seconds of work a second."""
    total = run(graph, [Cores(tuple(range(QUEUES)), cores=cores)]).total
    assert total >= sum(graph.seconds) / cores * (1 - 1e-9)
    assert total == run(graph, [Cores(tuple(range(QUEUES)), cores=cores)]).total
