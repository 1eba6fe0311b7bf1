"""Which positions of a sequence each context-parallel rank holds, and which blocks of the causal mask it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from suite.parse import require

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Rows = TypeVar("Rows", Tensor, np.ndarray)


def sequence_positions(seq_len: int, ranks: int, rank: int, balanced: bool) -> tuple[range, ...]:
    """The positions of one rank, in the order in which it holds them.

    One contiguous part of seq_len / ranks; balanced: of 2 ranks equal chunks, numbers `rank` and 2 ranks - 1 - rank.
    A causal query at position p reads p + 1 keys, so an early chunk and its mirror image cost every rank the same
    (Llama Team 2024, arXiv:2407.21783, section 3.3.2). Raises SpecError where the parts would not be equal.
    """
    parts = 2 * ranks if balanced and ranks > 1 else ranks
    require(
        seq_len % parts == 0,
        f"workload.seq_len: {seq_len} % {parts} parts != 0 with cp({ranks}){', balanced' if parts > ranks else ''};"
        f" take a multiple of {parts}",
    )
    size = seq_len // parts
    mine = (rank, parts - 1 - rank) if parts > ranks else (rank,)
    return tuple(range(part * size, (part + 1) * size) for part in mine)


def shard_sequence(rows: Rows, ranks: int, rank: int, balanced: bool) -> Rows:
    """A rank's columns of ids or labels [..., seq_len]: [..., seq_len / ranks], a copy. Tensor or array."""
    return rows[..., list(chain(*sequence_positions(rows.shape[-1], ranks, rank, balanced)))]


class Part(StrEnum):
    """A part of a rank's tokens: all, or one of the two chunks of a balanced shard."""

    ALL = "all"
    EARLY = "early"
    LATE = "late"

    def of(self, length: int) -> slice:
        """As a slice of so many tokens."""
        half = length // 2
        return {Part.ALL: slice(0, length), Part.EARLY: slice(0, half), Part.LATE: slice(half, length)}[self]


@dataclass(frozen=True)
class Product:
    """A product of a ring step: these of the rank's queries with these of the visiting keys. is_masked: the
    triangle alone, each query with the keys up to its own place."""

    queries: Part = Part.ALL
    keys: Part = Part.ALL
    is_masked: bool = False

    def pairs(self, length: int) -> int:
        """Query-key pairs of shards of so many tokens."""
        queries, keys = (len(range(length)[part.of(length)]) for part in (self.queries, self.keys))
        return queries * (queries + 1) // 2 if self.is_masked else queries * keys


def ring_products(ranks: int, rank: int, is_causal: bool, balanced: bool) -> Iterator[Product | None]:
    """What a rank computes in ring steps 0, 1, ..., when it has its own keys, its predecessor's, and so on; None:
    nothing, all pairs are masked.

    Balanced, of another rank's two chunks: an earlier rank's early chunk is before all of the queries and its late
    chunk after them; a later rank's chunks are both between the queries' two. Half of the square either way.
    """
    for step in range(ranks):
        source = (rank - step) % ranks
        if not is_causal:
            yield Product()
        elif source == rank:
            yield Product(is_masked=True)
        elif balanced:
            yield Product(keys=Part.EARLY) if source < rank else Product(queries=Part.LATE)
        else:
            yield Product() if source < rank else None


def causal_pairs(seq_len: int, ranks: int, rank: int, balanced: bool) -> int:
    """Query-key pairs that a rank of a causal ring multiplies, of seq_len (seq_len + 1) / 2 in all."""
    length = sum(map(len, sequence_positions(seq_len, ranks, rank, balanced)))
    return sum(product.pairs(length) for product in ring_products(ranks, rank, True, balanced) if product)
