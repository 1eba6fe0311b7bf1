"""Which blocks a pipeline stage holds and which stages a rank: by hand, and against every split there is."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallelism.pipeline.strategy import joins_weights, sends, stream_bytes, stream_shape
from parallelism.schedules.stages import (
    balanced_split,
    block_costs,
    block_counts,
    even_split,
    head_is_copied,
    stages_of,
    stages_of_rank,
)
from suite.case import Case
from suite.layout import Layout, Recompute, Schedule, StageSplit
from suite.models.decoder import DecoderSpec
from suite.spec import AttentionKernel, LossKernel, Precision, Workload

pytestmark = pytest.mark.unit

MODEL = DecoderSpec(name="tiny", layers=8, hidden=4, heads=2, ffn=8, vocab=16, max_positions=8)


def case_of(layout: Layout, model: DecoderSpec = MODEL, **workload: object) -> Case:
    """Eight micro-batches of three sequences of eight tokens."""
    settings = {"seq_len": 8, "micro_batch": 3, "micro_batches": 8, "precision": Precision.FP32} | workload
    return Case(model, layout, Workload(**settings))  # type: ignore[arg-type]


def zbv(pp: int, **settings: object) -> Layout:
    """A V of two stages a rank."""
    return Layout(pp=pp, schedule=Schedule.ZBV, virtual_stages=2, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "blocks, stages, split", [(8, 4, (2, 2, 2, 2)), (7, 3, (3, 2, 2)), (5, 4, (2, 1, 1, 1)), (3, 1, (3,))]
)
def test_even_is_within_one_and_the_last_stage_has_the_fewer(blocks: int, stages: int, split: tuple[int, ...]) -> None:
    assert even_split(blocks, stages) == split


@pytest.mark.parametrize(
    "costs, stages, split",
    [
        ((1, 1, 1, 1), 2, (2, 2)),
        ((1, 1, 1, 4), 2, (3, 1)),  # the head weighs three blocks more
        ((1, 1, 1, 1, 1, 9), 3, (3, 2, 1)),  # 9 cannot be helped; the rest is even, the earlier stage has one more
        ((1, 1, 1, 1, 1, 2), 3, (3, 2, 1)),  # as good as 2-2-2: 3, 2, 2 against 2, 2, 3
        ((5, 1, 1, 1), 3, (1, 2, 1)),
        ((7,), 1, (1,)),
    ],
)
def test_balanced_by_hand(costs: tuple[int, ...], stages: int, split: tuple[int, ...]) -> None:
    assert balanced_split(costs, stages) == split


@given(st.data())
def test_no_split_is_better_than_the_balanced_one(data: st.DataObject) -> None:
    costs = tuple(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=9)))
    stages = data.draw(st.integers(1, len(costs)))

    def worth(counts: tuple[int, ...]) -> tuple[int, int, list[int]]:
        ends = accumulate(counts, initial=0)
        sums = [sum(costs[start:end]) for start, end in pairwise(ends)]
        return max(sums), sum(cost * cost for cost in sums), [-count for count in counts]

    cuts = ((0, *chosen, len(costs)) for chosen in combinations(range(1, len(costs)), stages - 1))
    every = [tuple(end - start for start, end in pairwise(cut)) for cut in cuts]
    assert worth(balanced_split(costs, stages)) == min(map(worth, every))


def test_costs_by_hand() -> None:
    """A block's matrices have 4*16 + 3*32 weights and are used three times, at 2 FLOPs for each of 24 tokens; attention
    over the full square, 4 s h a token forward, thrice that in all; the head, in the last block's, 16*4 weights."""
    block = 3 * 2 * 24 * (4 * 16 + 3 * 32) + 3 * 4 * 24 * 8 * 4
    head = 3 * 2 * 24 * 64
    case = case_of(Layout(pp=2), attention=AttentionKernel.EAGER)
    assert block_costs(case) == (block,) * 7 + (block + head,)
    rerun = case_of(Layout(pp=2, recompute=Recompute.parse("every-4")), attention=AttentionKernel.EAGER)
    assert block_costs(rerun)[:5] == (block + block // 3, block, block, block, block + block // 3)


def test_a_large_vocabulary_lightens_the_last_stage() -> None:
    """A head of 3 * 2 * 24 * 4 * 320 FLOPs costs some seven blocks; without one they are even."""
    assert block_counts(case_of(Layout(pp=4), replace(MODEL, vocab=320))) == (3, 2, 2, 1)
    assert block_counts(case_of(Layout(pp=4), replace(MODEL, vocab=5))) == (2, 2, 2, 2)
    assert block_counts(case_of(Layout(pp=4, stage_split=StageSplit.parse("even")), replace(MODEL, vocab=320))) == (
        2,
        2,
        2,
        2,
    )
    assert block_counts(case_of(Layout(pp=4, stage_split=StageSplit.parse("1-1-1-5")))) == (1, 1, 1, 5)


def test_stages_have_every_block_once_and_the_ends_at_the_ends() -> None:
    stages = stages_of(case_of(zbv(2, stage_split=StageSplit.parse("1-3-2-2"))))
    assert [list(stage.blocks) for stage in stages] == [[0], [1, 2, 3], [4, 5], [6, 7]]
    assert [stage.has_embedding for stage in stages] == [True, False, False, False]
    assert [stage.has_head for stage in stages] == [False, False, False, True]
    (only,) = stages_of(case_of(Layout()))
    assert (list(only.blocks), only.has_embedding, only.has_head) == (list(range(8)), True, True)


def test_ranks_hold_stages_round_and_round_or_down_and_up() -> None:
    loop = Layout(pp=3, schedule=Schedule.INTERLEAVED, virtual_stages=3)
    assert [stages_of_rank(loop, rank) for rank in range(3)] == [(0, 3, 6), (1, 4, 7), (2, 5, 8)]
    assert [stages_of_rank(zbv(3), rank) for rank in range(3)] == [(0, 5), (1, 4), (2, 3)]


def test_a_tied_head_is_a_copy_where_it_cannot_be_the_embedding() -> None:
    tied = replace(MODEL, tied=True)
    assert head_is_copied(case_of(Layout(pp=2), tied))
    assert not head_is_copied(case_of(zbv(2), tied))
    assert head_is_copied(case_of(zbv(2, fsdp=2, reshard_after_forward=False), tied))
    assert not head_is_copied(case_of(Layout(pp=2)))
    assert not head_is_copied(case_of(Layout(), tied))


def test_weights_are_joined_where_their_pass_would_rerun_what_is_checkpointed() -> None:
    full = Recompute.parse("full")
    assert joins_weights(case_of(zbv(2, recompute=full)), 0)
    assert not joins_weights(case_of(zbv(2, recompute=Recompute.parse("selective"))), 0)
    assert joins_weights(case_of(zbv(2, recompute=Recompute.parse("selective-op"))), 0)
    assert not joins_weights(case_of(Layout(pp=2, recompute=full)), 0)
    chunked = case_of(zbv(2), loss=LossKernel.CHUNKED)
    assert [joins_weights(chunked, stage) for stage in range(4)] == [False, False, False, True]


def test_the_stream_is_what_a_rank_holds_of_it() -> None:
    layout = Layout(pp=2, cp=2, tp=2)
    assert stream_shape(case_of(layout)) == (3, 2, 4)
    assert stream_bytes(case_of(layout)) == 3 * 2 * 4 * 4
    assert stream_shape(case_of(replace(layout, sequence_parallel=False))) == (3, 4, 4)
    mixed = {"precision": Precision.BF16_MIXED}
    assert stream_bytes(case_of(Layout(pp=2), **mixed)) == 3 * 8 * 4 * 4  # autocast leaves the residual in fp32
    assert stream_bytes(case_of(Layout(pp=2, fsdp=2), **mixed)) == 3 * 8 * 4 * 2


def test_sends_by_hand() -> None:
    """1F1B on 3 ranks: the ends send one way, the middle both. A V of 3: rank 0 an output and a gradient, rank 1 two of
    each, rank 2, where the model turns, one of each."""
    assert [sends(case_of(Layout(pp=3)), rank) for rank in range(3)] == [8, 16, 8]
    assert [sends(case_of(zbv(3)), rank) for rank in range(3)] == [16, 32, 16]
