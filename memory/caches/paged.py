"""A paged cache's bytes by formula, and how much of what it takes holds no token, beside a contiguous one."""

from __future__ import annotations

from dataclasses import dataclass

from memory.caches.terms import PLACE_BYTES, Stored, pool_terms
from suite.cache_shape import CacheShape
from suite.case import Case
from suite.parse import require
from suite.record import CacheTerm, Component, Quantity
from suite.serving_lengths import pages_for

SOURCE = "arXiv:2309.06180, sections 4.2 and 4.3"


def paged_terms(stored: Stored) -> tuple[CacheTerm, ...]:
    """Stored: both lanes of every page of the pool, and the block table. Read by the last step: whole pages of every
    sequence's table, as the gather reads them, pages that beams share once for each. Not counted: the gathered copy
    that attention reads; the one page that the gather reads again in place of those a shorter sequence does not have;
    free pages and reference counts, which are the host's lists."""
    shape, page = stored.shape, stored.spec.page_tokens
    assert page is not None
    most = pages_for((max(shape.room, shape.held),), page)
    read = pages_for(shape.lengths, page)
    return (
        *pool_terms(stored, Quantity.CACHE, _pool(shape, page) * page, "b*ceil(room/p)*p", SOURCE),
        CacheTerm(
            Component.TABLES, shape.sequences * most * PLACE_BYTES, f"b*ceil(max(room,s+n-1)/p)*{PLACE_BYTES}",
            "block table, int64",
        ),
        *pool_terms(stored, Quantity.CACHE_READ, read * page, "sum(ceil((s_i+n-1)/p))*p", SOURCE),
    )  # fmt: skip


def _pool(shape: CacheShape, page_tokens: int) -> int:
    """Pages of the pool."""
    return shape.sequences * pages_for((shape.room,), page_tokens)


@dataclass(frozen=True)
class Occupancy:
    """What entries of a cache are used for when the answers are whole, in each lane of each layer alike: how many hold
    a token, how many no other sequence can have, how many there are."""

    tokens: int
    taken: int
    pool: int

    @property
    def wasted_share(self) -> float:
        """Share of the taken entries that hold no token."""
        return 1 - self.tokens / self.taken

    @property
    def free(self) -> int:
        """Entries that a sequence could still take; below 0 where the cache fills up before the answers are whole."""
        return self.pool - self.taken


@dataclass(frozen=True)
class Fragmentation:
    """The same prompts in pages, and in one array with room for the longest answer, or more, of every sequence."""

    paged: Occupancy
    contiguous: Occupancy


def fragmentation(case: Case) -> Fragmentation:
    """Entries that paging takes of its pool and wastes: of a sequence of l tokens, ceil(l/p)*p - l in its last page,
    (p - 1)/2 on average over all l. A contiguous cache takes the room of every sequence before its first token: padding
    of shorter prompts and room never used are its waste. Beams are counted as if they shared no page: the most that
    they can take. SpecError for a case without cache.page_tokens."""
    page, shape = case.cache.page_tokens, CacheShape.of(case)
    require(page is not None, "cache.page_tokens: missing; give the tokens of a page")
    assert page is not None
    tokens, whole = sum(shape.lengths), shape.sequences * max(shape.room, shape.held)
    return Fragmentation(
        paged=Occupancy(tokens, pages_for(shape.lengths, page) * page, _pool(shape, page) * page),
        contiguous=Occupancy(tokens, whole, whole),
    )
