"""A cache of every token in one store a lane: allocated whole before the first token, or grown as tokens come."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suite.cache import Allocation
from suite.cache_shape import CacheShape, Lane
from suite.caches.base import CacheFull, sight_of
from suite.caches.rows import RowCache
from suite.caches.store import Store

#: (sequences, entries, lane) -> a store
MakeStore = Callable[[int, int, Lane], Store]


class FullLayer:
    """One layer: the first `length` entries of its stores are tokens."""

    def __init__(self, stores: tuple[Store, ...], allocation: Allocation) -> None:
        self.stores = stores
        self.allocation = allocation
        self.length = 0

    def extend(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Keep the new tokens' lanes behind the others; every lane of every token."""
        start, self.length = self.length, self.length + new[0].shape[1]
        for store, lane in zip(self.stores, new, strict=True):
            if self.allocation is Allocation.GROWING:
                store.append(lane)
            else:
                store.write(slice(start, self.length), lane)
        return tuple(store.read(slice(self.length)) for store in self.stores)


class FullCache(RowCache[FullLayer]):
    """Every token of every sequence: `room` entries a sequence, beside the places that they stand at."""

    def __init__(self, shape: CacheShape, make: MakeStore, device: torch.device, allocation: Allocation) -> None:
        entries = shape.room if allocation is Allocation.STATIC else 0
        layers = (
            FullLayer(tuple(make(shape.sequences, entries, lane) for lane in shape.lanes), allocation)
            for _ in range(shape.layers)
        )
        super().__init__(shape, tuple(layers), device)
        self.length = 0

    def advance(self, places: Tensor) -> None:
        """Make ready for tokens at these places."""
        end, room = self.length + places.shape[1], self.places.shape[1]
        if end > room:
            raise CacheFull(f"the cache has room for {room} tokens of a sequence, and {end} are there")
        self.places[:, self.length : end] = places
        self.length = end
        self._sight = sight_of(places, self.places[:, :end])
