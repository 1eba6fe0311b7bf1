"""A served case's cache: every term of what a rank stores and of what a decode step reads, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from memory.caches.blocks import block_terms
from memory.caches.full import full_terms
from memory.caches.paged import paged_terms
from memory.caches.terms import Stored
from memory.caches.window import window_terms
from parallelism.schedules.ledgers import stages_of_place
from suite.cache import CacheKind
from suite.cache_shape import CacheShape, cache_kind, stored_dtype
from suite.case import Case
from suite.record import CacheTerm, Quantity


def _every_token(stored: Stored) -> tuple[CacheTerm, ...]:
    return full_terms(stored) if stored.spec.page_tokens is None else paged_terms(stored)


#: kind of cache -> its terms
FORMULAS: dict[CacheKind, Callable[[Stored], tuple[CacheTerm, ...]]] = {
    CacheKind.FULL: _every_token, CacheKind.WINDOW: window_terms, CacheKind.SINKS: window_terms,
    CacheKind.BLOCKS: block_terms,
}  # fmt: skip


def cache_terms(case: Case, rank: int = 0) -> tuple[CacheTerm, ...]:
    """Every term of a rank's cache, stored (Quantity.CACHE) and read by the last decode step (CACHE_READ)."""
    stored = Stored(CacheShape.of(case, _layers(case, rank)), case.cache, stored_dtype(case))
    return tuple(replace(term, rank=rank) for term in FORMULAS[cache_kind(case)](stored))


def cache_bytes(case: Case, rank: int = 0, quantity: Quantity = Quantity.CACHE) -> int:
    """Bytes that a rank's cache takes, or that a step reads of it."""
    return sum(term.nbytes for term in cache_terms(case, rank) if term.quantity is quantity)


def _layers(case: Case, rank: int) -> int:
    """Blocks that a rank of a pipeline has."""
    if case.layout.pp == 1:
        return case.model.layers
    stages = stages_of_place(case, case.layout.place("pp", rank))
    return sum(len(stage.blocks) for stage in stages)
