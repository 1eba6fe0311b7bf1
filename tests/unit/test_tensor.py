"""The tensor-parallel plan, the parts of weights, and what is sent, by hand."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.estimate import MemoryModel
from parallelism.data import replicate
from parallelism.tensor.plan import Style, plan_of
from parallelism.traffic import messages_of
from suite.case import Case, case_from
from suite.collectives import Collective, Message, Tally, tally
from suite.layout import Layout
from suite.parse import SpecError
from suite.share import own_rows

pytestmark = pytest.mark.unit

AR, AG, RS = Collective.ALL_REDUCE, Collective.ALL_GATHER, Collective.REDUCE_SCATTER

#: Norms in all: two a block and the last one, of 4: 20.
LLAMA = {"layers": 2, "hidden": 4, "heads": 2, "kv_heads": 2, "ffn": 6, "vocab": 11, "max_positions": 8}
GPT = {"layers": 2, "hidden": 4, "heads": 2, "ffn": 6, "vocab": 11, "max_positions": 8, "norm": "layernorm",
       "activation": "gelu", "position": "learned", "bias": True, "tied": True}  # fmt: skip


def case_of(layout: dict[str, Any], model: dict[str, Any], **workload: Any) -> Case:
    sizes = {"seq_len": 4, "micro_batch": 1, "precision": "fp32"}
    return case_from({"model": model, "layout": layout, "workload": sizes | workload})


def rows(case: Case, rank: int = 0, axis: str = "tp") -> list[Message]:
    return [row for row in messages_of(case, MemoryModel(case).ledger_of_share(rank), rank) if row.axis == axis]


def sums(case: Case, rank: int = 0) -> dict[Collective, Tally]:
    return tally(rows(case, rank))


def test_the_plan_of_llamas_form() -> None:
    assert plan_of(case_of({"tp": 2}, LLAMA)) == {
        "embedding": Style.VOCABULARY_ROWS,
        "blocks.*.attention": Style.ENTER_BEFORE,
        "blocks.*.attention.wq": Style.COLUMNS,
        "blocks.*.attention.wk": Style.COLUMNS,
        "blocks.*.attention.wv": Style.COLUMNS,
        "blocks.*.attention.wo": Style.ROWS,
        "blocks.*.mlp": Style.ENTER_BEFORE,
        "blocks.*.mlp.gate": Style.COLUMNS,
        "blocks.*.mlp.up": Style.COLUMNS,
        "blocks.*.mlp.down": Style.ROWS,
        "norm": Style.ENTER_AFTER,
        "head": Style.COLUMNS,
    }


def test_the_plan_of_gpts_form() -> None:
    llama, gpt = (plan_of(case_of({"tp": 2}, model, loss="chunked")) for model in (LLAMA, GPT))
    assert gpt.pop("positions") is Style.OWN_POSITIONS
    assert llama.pop("blocks.*.mlp.gate") is Style.COLUMNS
    assert gpt == llama


@given(st.integers(1, 200), st.integers(1, 16))
def test_parts_make_the_whole(size: int, ranks: int) -> None:
    parts = [own_rows(size, ranks, rank) for rank in range(ranks)]
    assert [row for part in parts for row in part] == list(range(size))
    assert len({len(part) for part in parts[: size // len(parts[0])]}) == 1


def test_a_rank_without_vocabulary_is_refused() -> None:
    """Of 5 rows four ranks would take 2, 2, 1 and none."""
    assert [len(own_rows(5, 4, rank)) for rank in range(4)] == [2, 2, 1, 0]
    model = GPT | {"heads": 4, "ffn": 8}
    case_of({"tp": 4}, model | {"vocab": 7})
    for vocab in (3, 5, 6):
        with pytest.raises(SpecError, match=rf"model.vocab\({vocab}\) over layout.tp\(4\): each rank takes ceil"):
            case_of({"tp": 4}, model | {"vocab": vocab})


def test_the_parts_of_all_ranks_are_the_model_and_copies_of_what_is_whole() -> None:
    """GPT: norms 2 * 2 * 8 + 8 = 40, row biases 2 * 2 * 4 = 16, positions 8 * 4 = 32: 88, held twice."""
    case = case_of({"tp": 2}, GPT)
    memory = MemoryModel(case)
    held = [memory.ledger_of_share(rank).parameters for rank in range(2)]
    assert sum(held) == memory.ledger.parameters + 88
    assert held[0] - held[1] == 4  # 6 and 5 rows of 4


def test_sequence_parallel_traffic() -> None:
    """The stream is 4 tokens * 4 * 4 bytes = 64, half of it sent. Gathered: into attention and MLP of two blocks, the
    gradients of their outputs, into the head, the gradient of the embedding's output: 4 + 4 + 1 + 1 = 10, and scattered
    as often. Loss: 4 tokens, 16 and 32 bytes. Norms: 20 * 4 = 80 bytes. Clipping: 4."""
    assert sums(case_of({"tp": 2}, LLAMA)) == {
        AR: Tally(4, 16 + 32 + 80 + 4, Fraction(132)),
        AG: Tally(10, 640, Fraction(320)),
        RS: Tally(10, 640, Fraction(320)),
    }


def test_a_whole_stream_is_reduced() -> None:
    """Embedding, two halves of two blocks forward and backward, the head's input backward: 1 + 4 + 4 + 1 of 64 bytes;
    loss and clipping as above; norms are whole on every rank."""
    found = sums(case_of({"tp": 2, "sequence_parallel": False}, LLAMA))
    assert found == {AR: Tally(13, 640 + 16 + 32 + 4, Fraction(692))}


def test_both_send_the_same_but_for_norms() -> None:
    """An all-reduce is a reduce-scatter and an all-gather (arXiv:2205.05198, section 4.2.2): equal, since what the head
    reads is gathered and its gradient scattered, and the embedding's likewise."""
    parted, whole = (rows(case_of({"tp": 2, "sequence_parallel": held}, LLAMA)) for held in (True, False))
    assert sum(row.sent for row in parted) - sum(row.sent for row in whole) == 80


def test_bf16_halves_the_stream_but_not_the_embedding() -> None:
    found = sums(case_of({"tp": 2}, LLAMA, precision="bf16-mixed"))
    assert found[AG].payload == 9 * 32 + 64
    shards = sums(case_of({"tp": 2, "fsdp": 2}, LLAMA, precision="bf16-mixed"))
    assert shards[AG].payload == 10 * 32


@pytest.mark.parametrize(("dropout", "scatters"), [(0.0, 2), (0.1, 4)])
def test_reruns_send_again_what_they_need(dropout: float, scatters: int) -> None:
    """Each block gathers twice more; its last sum comes after all that it keeps, unless dropout keeps a mask."""
    model = LLAMA | {"dropout": dropout}
    stored, rerun = (sums(case_of({"tp": 2, "recompute": mode}, model)) for mode in ("none", "full"))
    assert rerun[AG].count - stored[AG].count == 4
    assert rerun[RS].count - stored[RS].count == scatters
    assert sums(case_of({"tp": 2, "recompute": "selective"}, model)) == stored


def test_the_chunked_loss_reduces_every_slice_twice() -> None:
    """12 tokens in slices of 2 make six; each token's three figures, forward and rerun."""
    found = [row for row in rows(case_of({"tp": 2}, LLAMA | {"max_positions": 12}, loss="chunked", seq_len=12))
             if "each token" in row.purpose]  # fmt: skip
    assert [(row.payload, row.count) for row in found] == [(2 * 4, 12), (2 * 8, 12)]


def test_fsdp_shards_what_is_whole() -> None:
    """Norms of 4 over two shards: 2 each, five of them: 40 bytes. And clipping: once over each axis."""
    case = case_of({"tp": 2, "fsdp": 2}, LLAMA)
    assert [row.payload for row in rows(case) if "norms" in row.purpose] == [40]
    assert [row.payload for row in rows(case, axis="fsdp") if row.collective is AR] == [4]


def test_replicas_average_their_parts() -> None:
    """Rank 0's half of LLAMA: a block has (4 * 4x4 + 3 * 6x4) / 2 = 68 and norms of 8: 76; embedding and head 6x4 each,
    norm 4: 52. 204 * 4 bytes. Rank 1 has 5 rows: 8 fewer."""
    case = case_of({"tp": 2, "dp": 2}, LLAMA)
    assert [[row.payload for row in rows(case, rank, "dp")] for rank in (0, 1)] == [[816], [784]]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([5], [range(1)]),
        ([9, 9], [range(1), range(1, 2)]),
        ([3, 3, 4, 1], [range(3), range(3, 4)]),
        ([1, 20, 1, 1], [range(1), range(1, 2), range(2, 4)]),
    ],
)
def test_buckets_by_hand(sizes: list[int], expected: list[range]) -> None:
    """Of 10 bytes."""
    assert replicate.buckets(sizes, 10) == expected


def test_the_bucket_limit_is_ddps_or_ones_own() -> None:
    assert replicate.bucket_cap_bytes(Layout(tp=2, dp=2)) == 25 * 2**20
    assert replicate.bucket_cap_bytes(Layout(tp=2, dp=2, bucket_mib=3)) == 3 * 2**20
