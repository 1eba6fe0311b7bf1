"""The walk of a pipeline rank: how many micro-batches it keeps, what is left at the end, what is held between steps."""

from __future__ import annotations

from typing import Any

import pytest

from memory.estimate import MemoryModel
from memory.pipeline_buffers import pipeline_holdings
from memory.references import Passed, References
from suite.case import Case, case_from
from suite.layout import Schedule
from suite.record import Moment

MODEL = {"layers": 8, "hidden": 64, "heads": 4, "ffn": 96, "vocab": 101, "max_positions": 32}
B, S, H = 2, 16, 64
STREAM = B * S * H * 4


def case(schedule: str, micro_batches: int, pp: int = 4, **layout: Any) -> Case:
    stages = Schedule(schedule).stages_a_rank[0]
    return case_from({
        "model": MODEL,
        "layout": {"pp": pp, "schedule": schedule, "virtual_stages": stages, **layout},
        "workload": {"seq_len": S, "micro_batch": B, "micro_batches": micro_batches, "precision": "fp32"},
    })  # fmt: skip


def before_backward(of: Case, rank: int) -> int:
    """Bytes above what is held when the rank's first backward pass begins."""
    return MemoryModel(of).step(rank).instants[Moment.LOSS].nbytes


@pytest.mark.parametrize(("rank", "in_flight"), [(0, 4), (1, 3), (2, 2)])
def test_1f1b_keeps_a_micro_batch_for_every_rank_to_come(rank: int, in_flight: int) -> None:
    """arXiv:2104.04473, section 2.2.1: p - rank of any number; fewer only where there are fewer."""
    one = before_backward(case("gpipe", 1), rank)
    assert before_backward(case("1f1b", 9), rank) == in_flight * one
    assert before_backward(case("1f1b", 4), rank) == in_flight * one


def test_gpipe_keeps_every_micro_batch() -> None:
    """arXiv:1811.06965, section 2.3."""
    assert before_backward(case("gpipe", 7), 1) == 7 * before_backward(case("gpipe", 1), 1)


def test_a_blocks_rerun_leaves_its_input_and_the_stages_output() -> None:
    """Two blocks a stage, the first one's input in a buffer: a stream between them, and one for the next stage."""
    assert before_backward(case("gpipe", 3, recompute="full"), 1) == 3 * 2 * STREAM


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_a_step_leaves_the_gradients_and_nothing_else(schedule: str, recompute: str) -> None:
    of = case(schedule, 8, recompute=recompute)
    model = MemoryModel(of)
    for rank in range(4):
        gradients = 4 * model.ledger_of_rank(rank).parameters
        assert model.step(rank).instants[Moment.AFTER_BACKWARD].nbytes == gradients


@pytest.mark.parametrize("schedule", [each for each in Schedule if each.splits_backward])
def test_weights_that_wait_keep_more(schedule: str) -> None:
    """With its weights joined to its inputs (every block rerun) a rank keeps less than where they wait."""
    joined, apart = case(schedule, 8, recompute="full"), case(schedule, 8)
    for rank in range(4):
        assert MemoryModel(joined).peak_bytes(rank) < MemoryModel(apart).peak_bytes(rank)


def test_buffers_derived_by_hand() -> None:
    """Five micro-batches: the first stage is sent gradients, the last inputs, those between both."""
    of = case("1f1b", 5)
    assert [sum(row.nbytes for row in pipeline_holdings(of, rank)) for rank in range(4)] == [
        5 * STREAM, 10 * STREAM, 10 * STREAM, 5 * STREAM,
    ]  # fmt: skip
    assert all(row.is_lazy for row in pipeline_holdings(of, 1))


def test_two_stages_a_rank_have_their_own_buffers() -> None:
    """Rank 0 has stages 0 and 2, rank 1 stages 1 and 3: all but the first are sent inputs, but the last gradients."""
    of = case("interleaved-1f1b", 4, pp=2)
    assert [sum(row.nbytes for row in pipeline_holdings(of, rank)) for rank in range(2)] == [12 * STREAM, 12 * STREAM]


def test_a_tensor_goes_when_its_last_name_lets_go() -> None:
    held = References()
    first, second = Passed(0, False), Passed(0, False)
    held.assign("cache", first)
    held.assign("sends", first)
    held.drop("cache")
    assert held.take() == []
    held.assign("sends", second)
    assert held.take() == [first]
    held.drop("sends")
    assert held.take() == [second]
