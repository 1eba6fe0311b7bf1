"""What a rank holds between steps, by hand: parameters, gradients, optimizer state, buckets, buffers, inputs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.estimate import MemoryModel
from memory.optimizer import optimizer_bytes, optimizer_transient
from memory.state import holdings, parameter_bytes
from parallelism.data.fsdp import padded_elements, shard_elements, shard_rows
from suite.case import Case, case_from
from suite.record import STATE, Component, Moment

pytestmark = pytest.mark.unit

#: embedding and head 7x4 each, wq and wo 4x4, wk and wv 2x4, gate and up 5x4, down 4x5, three norms of 4: 176 elements
SMALL = {"layers": 1, "hidden": 4, "heads": 2, "kv_heads": 1, "head_dim": 2, "ffn": 5, "vocab": 7, "max_positions": 8}
WHOLE, TENSORS = 28 + 28 + 16 + 16 + 8 + 8 + 20 + 20 + 20 + 4 + 4 + 4, 12
#: over 3 ranks 7 rows are 3, 3, 1; 4 are 2, 2, 0; 2 are 1, 1, 0; 5 are 2, 2, 1
FIRST = 12 + 12 + 8 + 8 + 4 + 4 + 8 + 8 + 10 + 2 + 2 + 2
LAST = 4 + 4 + 0 + 0 + 0 + 0 + 4 + 4 + 0 + 0 + 0 + 0


def case_of(layout: dict[str, Any] | None = None, spec: dict[str, Any] | None = None, **workload: Any) -> Case:
    """A small case in fp32, 6 tokens a sequence."""
    work = {"seq_len": 6, "precision": "fp32"} | workload
    return case_from({"model": SMALL | (spec or {}), "layout": layout or {}, "workload": work})


def held(case: Case, rank: int = 0) -> dict[Component, int]:
    """Bytes by component that are held between two steps."""
    rows: dict[Component, int] = {}
    for item in holdings(case, MemoryModel(case).ledger, rank):
        rows[item.component] = rows.get(item.component, 0) + item.nbytes
    return rows


def test_one_rank_holds_everything_once() -> None:
    assert WHOLE == 176
    assert held(case_of(micro_batch=5, micro_batches=2)) == {
        Component.PARAMETERS: 4 * WHOLE,
        Component.OPTIMIZER: 8 * WHOLE + 4 * TENSORS,
        Component.INPUTS: 2 * 5 * 6 * 8 * 2,  # ids and labels of every micro-batch, int64
        Component.BUFFERS: 2 * 8 * 1 * 4,  # cosines and sines of 8 positions, one pair a head
    }


@pytest.mark.parametrize(("optimizer", "state"), [("adamw", 8 * WHOLE + 4 * TENSORS), ("sgd", 4 * WHOLE)])
def test_adamw_keeps_two_moments_and_a_step_a_tensor_and_sgd_its_momentum(optimizer: str, state: int) -> None:
    assert held(case_of(optimizer=optimizer))[Component.OPTIMIZER] == state


def test_a_tied_head_is_held_once() -> None:
    rows = held(case_of(spec={"tied": True}))
    assert rows[Component.PARAMETERS] == 4 * (WHOLE - 28)
    assert rows[Component.OPTIMIZER] == 8 * (WHOLE - 28) + 4 * (TENSORS - 1)


def test_a_learned_table_is_a_parameter_and_no_buffer() -> None:
    rows = held(case_of(spec={"position": "learned"}))
    assert rows[Component.PARAMETERS] == 4 * (WHOLE + 8 * 4)
    assert Component.BUFFERS not in rows


def test_ddp_holds_a_copy_of_the_gradients_in_buckets() -> None:
    rows = held(case_of({"dp": 2}), rank=1)
    assert rows[Component.COMMUNICATION] == 4 * WHOLE
    assert rows[Component.PARAMETERS] == 4 * WHOLE


@pytest.mark.parametrize(("rank", "elements"), [(0, FIRST), (1, FIRST), (2, LAST)])
def test_uneven_shards(rank: int, elements: int) -> None:
    """Weights and gradients are padded to the first rank's rows; optimizer state is made for what is really there."""
    assert 2 * FIRST + LAST == WHOLE
    case = case_of({"fsdp": 3})
    model = MemoryModel(case)
    row = model.estimate(rank).by_moment[Moment.AFTER_BACKWARD]
    assert row[Component.PARAMETERS] == 4 * FIRST
    assert row[Component.GRADIENTS] == 4 * FIRST
    assert row[Component.OPTIMIZER] == 8 * elements + 4 * TENSORS
    assert optimizer_bytes(case_of({"fsdp": 3}, optimizer="sgd"), model.ledger, rank) == 4 * elements


def test_states_exist_from_the_moment_they_are_made() -> None:
    table = MemoryModel(case_of()).estimate().by_moment
    assert Component.OPTIMIZER not in table[Moment.INIT]
    assert Component.GRADIENTS not in table[Moment.INIT]
    assert Component.GRADIENTS not in table[Moment.STEADY]
    gradients = {moment: row.get(Component.GRADIENTS, 0) for moment, row in table.items()}
    assert gradients[Moment.AFTER_BACKWARD] == gradients[Moment.OPTIMIZER_PEAK] == 4 * WHOLE
    assert gradients[Moment.LOSS] == gradients[Moment.FORWARD_PEAK] == 0


def test_the_second_micro_batch_finds_gradients() -> None:
    table = MemoryModel(case_of(micro_batches=2)).estimate().by_moment
    assert table[Moment.LOSS][Component.GRADIENTS] == 4 * WHOLE
    assert table[Moment.AFTER_BACKWARD][Component.GRADIENTS] == 4 * WHOLE


def test_precision_does_not_change_the_states() -> None:
    """Weights, gradients and moments are fp32 in both: bf16 copies are activations."""
    for layout in ({}, {"fsdp": 3}, {"dp": 2}):
        tables = [MemoryModel(case_of(layout, precision=name)).estimate(1).by_moment for name in ("fp32", "bf16-mixed")]
        for moment in (Moment.INIT, Moment.AFTER_BACKWARD, Moment.STEADY):
            full, mixed = (tuple(table[moment].get(component, 0) for component in STATE) for table in tables)
            assert full == mixed


def test_sgds_loop_decays_one_shard_at_a_time() -> None:
    """The largest matrix's shard: 3 rows of the embedding's 7, none of the last rank's 4-row ones."""
    ledger = MemoryModel(case_of()).ledger
    sharded = case_of({"fsdp": 3}, optimizer="sgd")
    first, last = (optimizer_transient(sharded, ledger, rank) for rank in (0, 2))
    assert first is not None
    assert last is not None
    assert (first.nbytes, last.nbytes) == (4 * 12, 4 * 4)
    assert optimizer_transient(case_of(optimizer="sgd"), ledger, 0) is None
    assert optimizer_transient(case_of({"fsdp": 3}), ledger, 0) is None


@given(rows=st.integers(1, 500), ranks=st.integers(1, 64), width=st.integers(1, 9))
def test_shards_are_torch_chunks(rows: int, ranks: int, width: int) -> None:
    """Conserved, never growing with the rank, the first as large as the padding; as torch.chunk cuts a list."""
    shards = [shard_rows(rows, ranks, rank) for rank in range(ranks)]
    step = -(-rows // ranks)
    assert shards == [len(range(rows)[start : start + step]) for start in range(0, step * ranks, step)]
    assert sum(shards) == rows
    assert shards == sorted(shards, reverse=True)
    assert padded_elements((rows, width), ranks) == shards[0] * width == shard_elements((rows, width), ranks, 0)


@given(
    rank=st.integers(0, 8),
    ranks=st.integers(1, 9),
    vocab=st.integers(3, 60),
    ffn=st.integers(1, 40),
    tied=st.booleans(),
)
def test_shards_sum_to_the_whole_and_more_of_them_never_hold_more(
    rank: int, ranks: int, vocab: int, ffn: int, tied: bool
) -> None:
    spec = {"vocab": vocab, "ffn": ffn, "tied": tied}
    ledger = MemoryModel(case_of(spec=spec)).ledger
    cases = [case_of({"fsdp": count}, spec, optimizer="sgd") for count in (ranks, ranks + 1)]
    assert sum(optimizer_bytes(cases[0], ledger, place) for place in range(ranks)) == 4 * ledger.parameters
    fewer, more = (parameter_bytes(case, ledger) for case in cases)
    assert 4 * ledger.parameters <= ranks * fewer
    assert more <= fewer
    assert optimizer_bytes(cases[1], ledger, rank % ranks) <= optimizer_bytes(cases[0], ledger, 0)
