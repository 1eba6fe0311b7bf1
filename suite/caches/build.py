"""Case -> the cache that its model is served with."""

from __future__ import annotations

from collections.abc import Callable

import torch

from suite.cache import CacheKind
from suite.cache_shape import CacheShape, Lane, cache_kind, stored_dtype
from suite.caches.base import Cache
from suite.caches.full import FullCache, MakeStore
from suite.caches.paged import PagedCache
from suite.caches.store import PlainStore, Store
from suite.case import Case
from suite.operators import DType
from suite.parse import SpecError

DTYPES = {
    DType.FP32: torch.float32, DType.BF16: torch.bfloat16, DType.FP16: torch.float16, DType.FP8: torch.float8_e4m3fn,
}  # fmt: skip


def _full(case: Case, shape: CacheShape, make: MakeStore, device: torch.device) -> Cache:
    if case.cache.page_tokens is not None:
        return PagedCache(shape, make, device, case.cache.page_tokens, case.model.window)
    return FullCache(shape, make, device, case.cache.allocation)


#: kind of cache -> how it is made
CACHES: dict[CacheKind, Callable[[Case, CacheShape, MakeStore, torch.device], Cache]] = {CacheKind.FULL: _full}


def build_cache(case: Case, device: torch.device) -> Cache:
    """An empty cache for a rank of a served case (no pipelines). SpecError for a kind that is not built."""
    kind, shape = cache_kind(case), CacheShape.of(case)
    if kind not in CACHES:
        raise SpecError(f"cache: a cache of kind {kind} is not built yet")
    return CACHES[kind](case, shape, store_maker(case, shape, device), device)


def store_maker(case: Case, shape: CacheShape, device: torch.device) -> MakeStore:
    """How the case's cache holds numbers."""
    dtype = stored_dtype(case)
    if dtype is None:
        raise SpecError(f"cache.cache_dtype: {case.cache.cache_dtype} is not built yet")

    def plain(sequences: int, entries: int, lane: Lane) -> Store:
        return PlainStore(sequences, entries, lane.heads, lane.width, DTYPES[dtype], DTYPES[shape.compute], device)

    return plain
