"""A cache of every token in one store a lane: allocated whole before the first token, or grown as tokens come."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from suite.cache import Allocation
from suite.cache_shape import CacheShape, Lane
from suite.caches.base import NOTHING, CacheFull, Sight, held_in, sight_of
from suite.caches.store import Store
from suite.record import Component

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


class FullCache:
    """Every token of every sequence: `room` entries a sequence, beside the places that they stand at (int64)."""

    def __init__(self, shape: CacheShape, make: MakeStore, device: torch.device, allocation: Allocation) -> None:
        entries = shape.room if allocation is Allocation.STATIC else 0
        self._layers = tuple(
            FullLayer(tuple(make(shape.sequences, entries, lane) for lane in shape.lanes), allocation)
            for _ in range(shape.layers)
        )
        self.places = torch.full((shape.sequences, shape.room), NOTHING, device=device)
        self.length = 0
        self._sight = Sight()

    @property
    def layers(self) -> tuple[FullLayer, ...]:
        """One a block of the model."""
        return self._layers

    def advance(self, places: Tensor) -> None:
        """Make ready for tokens at these places."""
        end, room = self.length + places.shape[1], self.places.shape[1]
        if end > room:
            raise CacheFull(f"the cache has room for {room} tokens of a sequence, and {end} are there")
        self.places[:, self.length : end] = places
        self.length = end
        self._sight = sight_of(places, self.places[:, :end])

    @property
    def sight(self) -> Sight:
        """What the latest tokens may read."""
        return self._sight

    def reorder(self, rows: Tensor) -> None:
        """Let sequence i go on from what sequence rows[i] holds."""
        self.places = self.places[rows]
        for layer in self._layers:
            for store in layer.stores:
                store.reorder(rows)

    def held(self) -> Mapping[Component, tuple[Tensor, ...]]:
        """Stores by what they are for, and the table of places."""
        return {**held_in([layer.stores for layer in self._layers]), Component.TABLES: (self.places,)}
