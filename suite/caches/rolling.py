"""A rolling buffer of the newest tokens (arXiv:2310.06825, section 2), and where it is asked for of the first ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from suite.cache_shape import CacheShape
from suite.caches.base import CacheFull, sight_of
from suite.caches.flat import zeroed
from suite.caches.full import MakeStore
from suite.caches.rows import RowCache
from suite.caches.store import Store


@dataclass(frozen=True)
class Pass:
    """Where the tokens of a pass go: those at (rows, tokens) [n] of [b, s] into each row's `slots` [n]; padding, and
    tokens that later ones of the pass would overwrite, go nowhere. `before` and `after`: the longest row's entries."""

    rows: Tensor
    tokens: Tensor
    slots: Tensor
    before: int
    after: int
    overwrites: bool  # what some query of the pass may still read?


class RollingLayer:
    """One layer: a store a lane, of as many entries as the cache has."""

    def __init__(self, stores: tuple[Store, ...], cache: RollingCache) -> None:
        self.stores = tuple(zeroed(store) for store in stores)
        self._cache = cache

    def extend(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Keep the new tokens' lanes. All entries' lanes; where tokens overwrite what queries of their own pass may
        read, what was there before it and behind that the new tokens as they came."""
        now, past = self._cache.latest, new
        if now.overwrites and now.before:
            past = tuple(
                torch.cat((store.read(slice(now.before)), lane), dim=1)
                for store, lane in zip(self.stores, new, strict=True)
            )
        for store, lane in zip(self.stores, new, strict=True):
            store.write((now.rows, now.slots), lane[now.rows, now.tokens])
        return past if now.overwrites else tuple(store.read(slice(now.after)) for store in self.stores)


class RollingCache(RowCache[RollingLayer]):
    """The newest `window` tokens of every sequence, and its first `sinks`: the token at place p is entry p where
    p < sinks, else sinks + (p - sinks) mod window. Padding is no entry. Texts that are shorter have less room.
    """

    def __init__(self, shape: CacheShape, make: MakeStore, device: torch.device, window: int, sinks: int = 0) -> None:
        self.window, self.sinks = window, sinks
        layers = (
            RollingLayer(tuple(make(shape.sequences, shape.room, lane) for lane in shape.lanes), self)
            for _ in range(shape.layers)
        )
        super().__init__(shape, tuple(layers), device)
        none = torch.empty(0, dtype=torch.long, device=device)
        self._latest = Pass(none, none, none, 0, 0, False)
        self._entries = self.places[:, :0]

    @property
    def latest(self) -> Pass:
        """Where the tokens of the latest `advance` go."""
        return self._latest

    @property
    def entries(self) -> Tensor:
        """Places of what layers return of the latest tokens, [b, t]; NOTHING where there is none."""
        return self._entries

    def advance(self, places: Tensor) -> None:
        """Make ready for tokens at these places, [b, s], rising in every row."""
        room, end = self.places.shape[1], int(places.max()) + 1
        if end > room < self.window + self.sinks:
            raise CacheFull(f"the cache has room for {room} tokens of a sequence, and {end} are there")
        self._latest = now = self._pass(places, end)
        before = self.places[:, : now.before]
        self._entries = torch.cat((before, places), dim=1)
        self.places[now.rows, now.slots] = places[now.rows, now.tokens]
        if not now.overwrites:
            self._entries = self.places[:, : now.after]
        self._sight = sight_of(places, self._entries, self.window, self.sinks)

    def _pass(self, places: Tensor, end: int) -> Pass:
        newest = places.amax(dim=1, keepdim=True)
        stays = (places >= 0) & ((places > newest - self.window) | (places < self.sinks))
        rows, tokens = stays.nonzero(as_tuple=True)
        kept = places[rows, tokens]
        slots = torch.where(kept < self.sinks, kept, self.sinks + (kept - self.sinks) % self.window)
        room, before = self.places.shape[1], self._latest.after
        # a lone token takes the place of one that it may itself no longer see
        overwrites = end > room and places.shape[1] > 1
        return Pass(rows, tokens, slots, before, max(before, min(end, room)), overwrites)
