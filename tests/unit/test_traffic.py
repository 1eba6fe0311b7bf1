"""Traffic formulas by hand, on a model small enough to count: its parameters are written out below."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from memory.estimate import MemoryModel
from parallelism.data.ddp import buckets
from parallelism.data.fsdp import messages as fsdp_messages
from parallelism.traffic import estimate_traffic, messages_of
from suite.case import Case, case_from
from suite.collectives import Collective, Message, Tally, tally
from suite.parse import from_mapping, to_mapping
from suite.record import Quantity, Sample
from suite.store import EstimateRow, decode, encode

pytestmark = pytest.mark.unit

AR, AG, RS = Collective.ALL_REDUCE, Collective.ALL_GATHER, Collective.REDUCE_SCATTER
KIB, MIB = 2**10, 2**20

#: A block: wq 4x4, wk 2x4, wv 2x4, wo 4x4 and the MLP's three 6x4, 6x4, 4x6 are 48 + 72 = 120, two norms of 4 are 8:
#: 128. Besides: embedding 10x4, head 10x4 and the last norm 4: 84. Two blocks: 2 * 128 + 84 = 340 parameters.
MODEL = {"layers": 2, "hidden": 4, "heads": 2, "kv_heads": 1, "ffn": 6, "vocab": 10, "max_positions": 8}
BLOCK, ROOT, TENSORS = 128, 84, 2 * 9 + 3


def case_of(layout: dict[str, Any], model: dict[str, Any] | None = None, **workload: Any) -> Case:
    sizes = {"seq_len": 4, "micro_batch": 1, "precision": "fp32"}
    return case_from({"model": MODEL | (model or {}), "layout": layout, "workload": sizes | workload})


def sums(case: Case, rank: int = 0) -> dict[Collective, Tally]:
    return tally(messages_of(case, MemoryModel(case).ledger_of_share(rank), rank))


def test_one_rank_sends_nothing() -> None:
    assert sums(case_of({})) == {}
    assert sums(case_of({"recompute": "full"})) == {}


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_ddp_reduces_every_gradient_once_a_step(micro_batches: int, precision: str) -> None:
    """340 gradients of 4 bytes in one bucket; four ranks pass 3/4 of it on, twice."""
    found = sums(case_of({"dp": 4}, micro_batches=micro_batches, precision=precision))
    assert found == {AR: Tally(1, 1360, Fraction(2040))}


def test_a_tied_weight_travels_once() -> None:
    assert sums(case_of({"dp": 2}, {"tied": True}))[AR].payload == (2 * BLOCK + ROOT - 40) * 4


def test_fsdp_gathers_twice_and_reduces_once() -> None:
    """Even shards of two: 4-, 6- and 10-row weights divide by 2, so nothing is padded. Blocks of 128 * 4 = 512 bytes
    twice each, the root's 84 * 4 = 336 once: 4 * 512 + 336 = 2384 gathered. Reduced: 2 * 512 + 336 = 1360. Half of
    each is sent. Clipping: a sum of squares of 4 bytes, of which 2 * 1/2 is sent."""
    assert sums(case_of({"fsdp": 2})) == {
        AR: Tally(1, 4, Fraction(4)),
        AG: Tally(5, 2384, Fraction(1192)),
        RS: Tally(3, 1360, Fraction(680)),
    }


def test_kept_blocks_are_gathered_once() -> None:
    """Two blocks and the root, once each: 2 * 512 + 336."""
    found = sums(case_of({"fsdp": 2, "reshard_after_forward": False}))
    assert found[AG] == Tally(3, 1360, Fraction(680))
    assert found[RS] == Tally(3, 1360, Fraction(680))


def test_bf16_halves_the_gathers_and_not_the_reductions() -> None:
    found = sums(case_of({"fsdp": 2}, precision="bf16-mixed"))
    assert (found[AG].payload, found[RS].payload) == (2384 // 2, 1360)


@pytest.mark.parametrize(("reduction", "growing"), [("step", [AG]), ("micro-batch", [AG, RS])])
def test_every_micro_batch_gathers_and_may_reduce(reduction: str, growing: list[Collective]) -> None:
    one, three = sums(case_of({"fsdp": 2})), sums(case_of({"fsdp": 2, "reduction": reduction}, micro_batches=3))
    assert three[AR] == one[AR]  # clipping comes once
    assert growing == [AG, RS] or three[RS] == one[RS]
    for collective in growing:
        assert (three[collective].count, three[collective].payload) == (
            3 * one[collective].count,
            3 * one[collective].payload,
        )


def test_shards_kept_in_parts_come_back_from_fewer_ranks() -> None:
    """Of four ranks two hold a block between them after forward: its backward gathers the same 640 bytes, half sent."""
    case = case_of({"fsdp": 4, "reshard_after_forward": 2})
    rows = [row for row in fsdp_messages(case, MemoryModel(case).ledger, 0) if row.collective is AG]
    assert [(row.ranks, row.payload, row.count, row.sent) for row in rows] == [
        (4, 640, 2, 960),
        (2, 640, 2, 640),
        (4, 400, 1, 300),
    ]


def test_gradients_may_be_reduced_in_bf16() -> None:
    layout = {"fsdp": 2, "reduce_type": "bf16"}
    assert sums(case_of(layout, precision="bf16-mixed"))[RS].payload == 1360 // 2
    assert sums(case_of({"fsdp": 2}, precision="bf16-mixed"))[RS].payload == 1360


def test_a_bucket_limit_of_ones_own_holds_for_the_first_bucket_too() -> None:
    assert buckets([512 * KIB] * 5, 2 * MIB) == [2 * MIB, 512 * KIB]


def test_uneven_rows_are_padded() -> None:
    """Over four ranks: wk and wv have 2 rows, padded to 4: 16 + 16; the MLP's 6 rows become 8: 32 + 32, its third
    has 4 rows of 6: 24; wq and wo 16 + 16, norms 4 + 4: 160 a block. Embedding and head of 10 rows become 12: 48 + 48,
    and 4: 100. Reduced: (2 * 160 + 100) * 4 = 1680. Gathered: (4 * 160 + 100) * 4 = 2960. Three quarters are sent."""
    found = sums(case_of({"fsdp": 4}))
    assert found[RS] == Tally(3, 1680, Fraction(1260))
    assert found[AG] == Tally(5, 2960, Fraction(2220))


def test_replicas_reduce_their_shards() -> None:
    """HSDP, two replicas of two shards: after each reduce-scatter an all-reduce of half of it: 256 a block, 168."""
    case = case_of({"fsdp": 2, "dp": 2})
    rows = [row for row in fsdp_messages(case, MemoryModel(case).ledger, 0) if row.axis == "dp"]
    assert [(row.collective, row.ranks, row.payload, row.count) for row in rows] == [(AR, 2, 256, 2), (AR, 2, 168, 1)]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([100, 200], [300]),
        ([MIB, 1], [MIB, 1]),
        # the gradient that reaches the limit still goes into the bucket
        ([MIB - 1, 500, 500], [MIB + 499, 500]),
        # from the second on the limit is 25 MiB
        ([2 * MIB, 24 * MIB, 24 * MIB, 7], [2 * MIB, 48 * MIB, 7]),
        ([30 * MIB] * 3, [30 * MIB] * 3),
        ([512 * KIB] * 2 + [5 * MIB] * 6, [MIB, 25 * MIB, 5 * MIB]),
    ],
)
def test_buckets_by_hand(sizes: list[int], expected: list[int]) -> None:
    assert buckets(sizes) == expected


def test_more_shards_never_send_less_and_approach_the_whole() -> None:
    """(n-1)/n grows with n; 12 divides by 1, 2, 3, 4, 6 and 12, so no padding hides it."""
    even = {"hidden": 12, "heads": 6, "kv_heads": 6, "ffn": 24, "vocab": 12}
    sent = [sums(case_of({"fsdp": ranks}, even))[AG].sent for ranks in (2, 3, 4, 6, 12)]
    assert sent == sorted(sent)
    assert sent[-1] < sums(case_of({"fsdp": 12}, even))[AG].payload


def test_every_message_says_why() -> None:
    rows = messages_of(case := case_of({"fsdp": 2}), MemoryModel(case).ledger)
    assert all(row.purpose and row.formula and row.source and row.axis for row in rows)


def test_an_estimate_is_stored_and_read_back() -> None:
    case = case_of({"fsdp": 2})
    traffic = estimate_traffic(case, MemoryModel(case).ledger, 1)
    row = EstimateRow(case.case_id, case.to_mapping(), traffic=(traffic,))
    assert decode(encode(row).strip(), Path("records.jsonl"), 1) == row
    assert isinstance(traffic.messages[0], Message)


def test_a_sample_of_before_has_no_collective() -> None:
    old = {"quantity": "loss_nats", "value": 1.0, "rank": 0, "index": 3, "component": None, "moment": None}
    assert from_mapping(Sample, old, "sample") == Sample(Quantity.LOSS, 1.0, 0, 3)
    new = Sample(Quantity.BYTES_SENT, 5.0, 1, 2, collective=AR)
    assert from_mapping(Sample, to_mapping(new), "sample") == new
