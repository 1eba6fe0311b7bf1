"""Case -> the cache that its model is served with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suite.cache import CacheKind
from suite.cache_shape import CacheShape, cache_kind, stored_dtype
from suite.caches.base import Cache
from suite.caches.block_memory import HOST, BlockMemory
from suite.caches.full import FullCache, MakeStore
from suite.caches.paged import PagedCache
from suite.caches.quantized import QuantizedStore
from suite.caches.rolling import RollingCache
from suite.caches.sinks import SinkCache
from suite.caches.store import PlainStore, Store
from suite.case import Case
from suite.models.blocks import rope_frequencies
from suite.models.decoder import Position
from suite.operators import DType
from suite.serving_rules import kept_window

DTYPES = {
    DType.FP32: torch.float32, DType.BF16: torch.bfloat16, DType.FP16: torch.float16, DType.FP8: torch.float8_e4m3fn,
}  # fmt: skip


#: device -> what makes stores there
StoresOn = Callable[[torch.device], MakeStore]


def _full(case: Case, shape: CacheShape, on: StoresOn, device: torch.device) -> Cache:
    if case.cache.page_tokens is not None:
        return PagedCache(shape, on(device), device, case.cache.page_tokens, case.model.window)
    return FullCache(shape, on(device), device, case.cache.allocation)


def _window(case: Case, shape: CacheShape, on: StoresOn, device: torch.device) -> Cache:
    window = kept_window(case)
    assert window is not None
    return RollingCache(shape, on(device), device, window)


def _sinks(case: Case, shape: CacheShape, on: StoresOn, device: torch.device) -> Cache:
    """Learned positions have gone into the keys by the time that they are kept: those are the text's."""
    window, sinks = kept_window(case), case.cache.sinks
    assert window is not None
    assert sinks is not None
    frequencies = _frequencies(case)
    if frequencies is None:
        return RollingCache(shape, on(device), device, window, sinks)
    return SinkCache(shape, on(device), device, window, sinks, frequencies)


def _frequencies(case: Case) -> Tensor | None:
    """Of the model's rotation; None where its positions are learned."""
    model = case.decoder
    if model.position is Position.LEARNED:
        return None
    return rope_frequencies(model.rotary_dim, model.rope_theta, model.rope_scaling)


def _blocks(case: Case, shape: CacheShape, on: StoresOn, device: torch.device) -> Cache:
    return BlockMemory(shape, case.cache, on(device), on(HOST), device, _frequencies(case))


#: kind of cache -> how it is made
CACHES: dict[CacheKind, Callable[[Case, CacheShape, StoresOn, torch.device], Cache]] = {
    CacheKind.FULL: _full, CacheKind.WINDOW: _window, CacheKind.SINKS: _sinks, CacheKind.BLOCKS: _blocks,
}  # fmt: skip


def _as_it_is(store: Store) -> Store:
    return store


def build_cache(case: Case, device: torch.device, around: Callable[[Store], Store] = _as_it_is) -> Cache:
    """An empty cache for a rank of a served case (no pipelines). `around` may put something around every store, to see
    what is read of it."""
    shape = CacheShape.of(case)

    def on(device: torch.device) -> MakeStore:
        make = store_maker(case, shape, device)
        return lambda sequences, entries, lane: around(make(sequences, entries, lane))

    return CACHES[cache_kind(case)](case, shape, on, device)


def store_maker(case: Case, shape: CacheShape, device: torch.device) -> MakeStore:
    """How the case's cache holds numbers."""
    spec, dtype, compute = case.cache, stored_dtype(case), DTYPES[shape.compute]
    if dtype is not None:
        return lambda sequences, entries, lane: PlainStore(
            sequences, entries, lane.heads, lane.width, DTYPES[dtype], compute, device
        )
    bits = spec.cache_dtype.bits
    assert bits is not None
    return lambda sequences, entries, lane: QuantizedStore(
        sequences, entries, lane.heads, lane.width, bits, spec.quant_group or lane.width, compute, device
    )
