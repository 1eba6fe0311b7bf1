"""What caches share that hold a row of entries for each sequence, beside the places that the entries stand at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from suite.cache_shape import CacheShape
from suite.caches.base import NOTHING, CacheLayer, Sight, held_in
from suite.caches.store import Store
from suite.record import Component


class StoredLayer(CacheLayer, Protocol):
    """A layer with a store a lane."""

    @property
    def stores(self) -> tuple[Store, ...]:
        """One a lane."""
        ...


L = TypeVar("L", bound=StoredLayer)


class RowCache(Generic[L]):
    """`places` [b, room] (int64): where each entry's token stands in its text; NOTHING where there is none."""

    def __init__(self, shape: CacheShape, layers: tuple[L, ...], device: torch.device) -> None:
        self._layers = layers
        self.places = torch.full((shape.sequences, shape.room), NOTHING, device=device)
        self._sight = Sight()

    @property
    def layers(self) -> tuple[L, ...]:
        """One a block of the model."""
        return self._layers

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
