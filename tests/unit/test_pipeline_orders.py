"""Pipeline schedules by hand, and what holds for every one of them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallelism.schedules.gathers import Held, gathers
from parallelism.schedules.orders import Action, Pass, in_flight, kept, order_of
from parallelism.schedules.stages import rank_of_stage
from suite.case import Case
from suite.layout import Layout, Schedule
from suite.models.decoder import DecoderSpec
from suite.spec import Workload

pytestmark = pytest.mark.unit


def layout_of(schedule: str, pp: int, virtual_stages: int = 0) -> Layout:
    """A pipeline, with as few stages a rank as the schedule takes unless told otherwise."""
    kind = Schedule(schedule)
    return Layout(pp=pp, schedule=kind, virtual_stages=virtual_stages or kind.stages_a_rank[0])


def text(layout: Layout, micro_batches: int, rank: int) -> str:
    """A rank's order, as in 0F0 0F1 0B0."""
    return " ".join(map(str, order_of(layout, micro_batches, rank)))


@pytest.mark.parametrize(
    "schedule, pp, micro_batches, rank, order",
    [
        ("gpipe", 2, 3, 0, "0F0 0F1 0F2 0B0 0B1 0B2"),
        # arXiv:2104.04473, figure 4: the first of four ranks has four forwards before its first backward
        ("1f1b", 4, 5, 0, "0F0 0F1 0F2 0F3 0B0 0F4 0B1 0B2 0B3 0B4"),
        ("1f1b", 4, 5, 2, "2F0 2F1 2B0 2F2 2B1 2F3 2B2 2F4 2B3 2B4"),
        ("1f1b", 4, 5, 3, "3F0 3B0 3F1 3B1 3F2 3B2 3F3 3B3 3F4 3B4"),
        # a round of the first stage, one pass a hop and way, then the second stage's first backward
        ("interleaved-1f1b", 2, 2, 0, "0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1"),
        ("interleaved-1f1b", 2, 2, 1, "1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1"),
        # the second rank's weights wait for one more gradient of inputs
        ("interleaved-zero-bubble", 2, 2, 0, "0F0 0F1 2F0 2F1 2I0 2W0 2I1 2W1 0I0 0W0 0I1 0W1"),
        ("interleaved-zero-bubble", 2, 2, 1, "1F0 1F1 3F0 3I0 3F1 3I1 3W0 1I0 3W1 1I1 1W0 1W1"),
        # arXiv:2405.15362, figure 1, for two ranks and three micro-batches
        ("zbv", 2, 3, 0, "0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 3W1 0I0 0W0 3F2 3I2 3W2 0I1 0W1 0I2 0W2"),
        ("zbv", 2, 3, 1, "1F0 2F0 1F1 2F1 2I0 2W0 1F2 1I0 1W0 2F2 2I1 2W1 1I1 2I2 1I2 1W1 2W2 1W2"),
        (
            "dualpipev", 2, 4, 1,
            "1F0 2F0 1F1 2F1 1F2 2B0 2F2 1B0 1F3 2B1 2F3 1B1 2B2 1B2 2I3 1I3 2W3 1W3",
        ),
    ],
)  # fmt: skip
def test_orders_by_hand(schedule: str, pp: int, micro_batches: int, rank: int, order: str) -> None:
    assert text(layout_of(schedule, pp), micro_batches, rank) == order


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[Layout, int]:
    """A pipeline and a number of micro-batches that its schedule takes."""
    schedule, pp = draw(st.sampled_from(list(Schedule))), draw(st.integers(2, 6))
    low, high = schedule.stages_a_rank
    layout = layout_of(schedule, pp, draw(st.integers(low, high or 4)))
    fewest = layout.stages if schedule in (Schedule.ONE_F_ONE_B, Schedule.DUAL_PIPE_V) else 1
    micro_batches = draw(st.integers(fewest, 4 * pp))
    if schedule in (Schedule.INTERLEAVED, Schedule.INTERLEAVED_ZERO_BUBBLE):
        micro_batches -= micro_batches % max(1, micro_batches // pp)
    return layout, micro_batches


@given(pipelines())
def test_every_micro_batch_goes_once_forward_and_once_backward_through_every_stage(drawn: tuple[Layout, int]) -> None:
    layout, micro_batches = drawn
    done = Counter(
        (action.stage, action.micro_batch, part)
        for rank in range(layout.pp)
        for action in order_of(layout, micro_batches, rank)
        for part in ((Pass.INPUT, Pass.WEIGHT) if action.kind is Pass.BACKWARD else (action.kind,))
    )
    parts = (Pass.FORWARD, Pass.INPUT, Pass.WEIGHT)
    every = {(stage, item, part) for stage in range(layout.stages) for item in range(micro_batches) for part in parts}
    assert done == Counter(every)


@given(pipelines())
def test_nobody_waits_forever(drawn: tuple[Layout, int]) -> None:
    """Ranks that run whatever is ready, each in its order, come to the end."""
    layout, micro_batches = drawn
    lines = [list(order_of(layout, micro_batches, rank)) for rank in range(layout.pp)]
    done: set[tuple[int, str, int]] = set()

    def is_ready(action: Action) -> bool:
        stage, item = action.stage, action.micro_batch
        if action.kind is Pass.FORWARD:
            return stage == 0 or (stage - 1, "F", item) in done
        if action.kind is Pass.WEIGHT:
            return (stage, "B", item) in done
        return (stage, "F", item) in done and (stage == layout.stages - 1 or (stage + 1, "B", item) in done)

    while any(lines):
        ready = [line for line in lines if line and is_ready(line[0])]
        assert ready, "every rank waits"
        for line in ready:
            action = line.pop(0)
            done.add((action.stage, "B" if action.kind is Pass.INPUT else str(action.kind), action.micro_batch))


@given(pipelines())
def test_what_is_in_flight_is_what_the_order_keeps(drawn: tuple[Layout, int]) -> None:
    layout, micro_batches = drawn
    for rank in range(layout.pp):
        levels = kept(order_of(layout, micro_batches, rank))
        assert max(levels) == in_flight(layout, micro_batches, rank)
        assert levels[-1] == 0


@pytest.mark.parametrize(
    "schedule, pp, virtual_stages, micro_batches, ranks",
    [
        ("gpipe", 4, 1, 9, [9, 9, 9, 9]),  # all of them: what 1F1B is there to avoid
        ("1f1b", 4, 1, 9, [4, 3, 2, 1]),  # arXiv:2104.04473, section 2.2.1: at most the pipeline's depth
        ("interleaved-1f1b", 4, 2, 8, [11, 9, 7, 5]),  # a round of 4, 2 a hop, 1
        ("interleaved-zero-bubble", 4, 2, 8, [8, 8, 8, 8]),  # 1 a hop down, 1 a weight that waits: the same everywhere
        ("zbv", 4, 2, 8, [8, 8, 8, 8]),  # arXiv:2405.15362: 1F1B's peak on every rank, two half-size stages each
        ("dualpipev", 4, 2, 8, [9, 9, 9, 9]),  # arXiv:2412.19437, table 2: and one more
    ],
)
def test_in_flight_by_hand(schedule: str, pp: int, virtual_stages: int, micro_batches: int, ranks: list[int]) -> None:
    layout = layout_of(schedule, pp, virtual_stages)
    assert [in_flight(layout, micro_batches, rank) for rank in range(pp)] == ranks


def test_every_rank_runs_its_own_stages() -> None:
    layout = layout_of("zbv", 4)
    for rank in range(4):
        assert {rank_of_stage(layout, action.stage) for action in order_of(layout, 8, rank)} == {rank}


@pytest.mark.parametrize(
    "schedule, stage, after_forward, found",
    [
        # each forward frees what it gathered, the first backward keeps it for the others
        ("gpipe", 0, Held.SHARD, {("forward", Held.SHARD): 3, ("backward", Held.SHARD): 1}),
        # F F B F B B on the first rank: the third forward finds it whole and frees it again
        ("1f1b", 0, Held.SHARD, {("forward", Held.SHARD): 2, ("backward", Held.SHARD): 2}),
        # F B F B F B on the last: the first forward gathers, then backward does, each time
        ("1f1b", 1, Held.SHARD, {("forward", Held.SHARD): 1, ("backward", Held.SHARD): 3}),
        ("1f1b", 1, Held.WHOLE, {("forward", Held.SHARD): 1}),
        ("gpipe", 0, Held.PART, {("forward", Held.SHARD): 1, ("forward", Held.PART): 2, ("backward", Held.PART): 1}),
    ],
)
def test_gathers_by_hand(schedule: str, stage: int, after_forward: Held, found: dict[tuple[str, Held], int]) -> None:
    model = DecoderSpec(name="tiny", layers=4, hidden=4, heads=2, ffn=8, vocab=16, max_positions=8)
    case = Case(model, Layout(pp=2, fsdp=2, schedule=Schedule(schedule)), Workload(seq_len=8, micro_batches=3))
    assert gathers(case, stage, after_forward) == found
