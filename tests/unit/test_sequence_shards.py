"""Shards of a sequence: every position once, every pair of the causal mask once, the same work for balanced ranks."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from suite.parse import SpecError
from suite.sequence_shards import causal_pairs, ring_products, sequence_positions, shard_sequence

pytestmark = pytest.mark.unit

SEQ_LEN = 120
RANKS = [1, 2, 3, 4, 5, 6]


def held(ranks: int, rank: int, balanced: bool) -> list[int]:
    return list(chain(*sequence_positions(SEQ_LEN, ranks, rank, balanced)))


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("ranks", RANKS)
def test_every_position_is_held_once(ranks: int, balanced: bool) -> None:
    shards = [held(ranks, rank, balanced) for rank in range(ranks)]
    assert sorted(chain(*shards)) == list(range(SEQ_LEN))
    assert {len(shard) for shard in shards} == {SEQ_LEN // ranks}
    assert all(shard == sorted(shard) for shard in shards)  # so that a shard's own triangle is its causal mask


def test_chunks_by_hand() -> None:
    assert sequence_positions(8, 2, 0, True) == (range(2), range(6, 8))
    assert sequence_positions(8, 2, 1, True) == (range(2, 4), range(4, 6))
    assert sequence_positions(8, 2, 1, False) == (range(4, 8),)
    assert sequence_positions(7, 1, 0, True) == (range(7),)


@pytest.mark.parametrize("ranks", RANKS)
def test_balanced_queries_read_as_many_keys(ranks: int) -> None:
    assert len({sum(place + 1 for place in held(ranks, rank, True)) for rank in range(ranks)}) == 1


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("ranks", RANKS)
def test_ring_multiplies_every_pair_of_the_mask_once_and_no_other(ranks: int, balanced: bool) -> None:
    pairs: list[tuple[int, int]] = []
    for rank in range(ranks):
        mine, before = held(ranks, rank, balanced), len(pairs)
        for step, product in enumerate(ring_products(ranks, rank, True, balanced)):
            theirs = held(ranks, (rank - step) % ranks, balanced)
            if product is not None:
                queries, keys = mine[product.queries.of(len(mine))], theirs[product.keys.of(len(theirs))]
                pairs += [(q, k) for i, q in enumerate(queries) for k in keys[: i + 1 if product.is_masked else None]]
        assert len(pairs) - before == causal_pairs(SEQ_LEN, ranks, rank, balanced)
    assert sorted(pairs) == [(q, k) for q in range(SEQ_LEN) for k in range(q + 1)]


def test_pairs_of_ranks_by_hand() -> None:
    """12 tokens on 3 ranks: triangles of 4 are 10, squares 16; balanced, 78 pairs over 3."""
    assert [causal_pairs(12, 3, rank, False) for rank in range(3)] == [10, 26, 42]
    assert [causal_pairs(12, 3, rank, True) for rank in range(3)] == [26, 26, 26]


def test_without_a_mask_every_rank_multiplies_everything() -> None:
    products = list(ring_products(3, 1, is_causal=False, balanced=True))
    assert [product.pairs(4) if product else 0 for product in products] == [16, 16, 16]


def test_shards_of_ids() -> None:
    ids = np.arange(16).reshape(2, 8)
    assert shard_sequence(ids, 2, 0, True).tolist() == [[0, 1, 6, 7], [8, 9, 14, 15]]
    assert shard_sequence(ids, 2, 1, False).tolist() == [[4, 5, 6, 7], [12, 13, 14, 15]]


@pytest.mark.parametrize(
    ("seq_len", "ranks", "balanced", "says"),
    [
        (10, 4, False, "workload.seq_len: 10 % 4 parts != 0 with cp(4); take a multiple of 4"),
        (12, 4, True, "workload.seq_len: 12 % 8 parts != 0 with cp(4), balanced; take a multiple of 8"),
    ],
)
def test_uneven_parts_are_refused(seq_len: int, ranks: int, balanced: bool, says: str) -> None:
    with pytest.raises(SpecError) as refused:
        sequence_positions(seq_len, ranks, 0, balanced)
    assert str(refused.value) == says
