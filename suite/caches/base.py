"""What a cache is to the model that it serves: layers that take new keys and values, and what queries may see of them.

A cache holds, for each sequence, entries with their places in the text. A forward pass goes: `advance(places)` once,
then every layer's `extend` in turn, then attention over what that returned, under `sight`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from suite.caches.store import Store
from suite.models.sight import may_see
from suite.record import Component

#: what the lanes of a token are, in order
LANES = (Component.KEYS, Component.VALUES)
#: the place of an entry that holds no token: padding before a short prompt, or room not yet used
NOTHING = -1


class CacheFull(RuntimeError):
    """There is no room for the next token. The message says how many there are, and how many were asked for."""


@dataclass(frozen=True)
class Sight:
    """Which entries each query of a pass may read. `mask` [b, s, t] is True where it may; None: all of them, or with
    is_causal those up to its own place where queries and entries are the same tokens."""

    mask: Tensor | None = None
    is_causal: bool = False


class CacheLayer(Protocol):
    """One layer's part of a cache. Lanes are what a token leaves: key and value [b, s, k, d]; with latent attention the
    latent [b, s, 1, kv_rank] and the rotated key [b, s, 1, rope_dim]."""

    def extend(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Keep the new tokens' lanes; all entries' lanes, [b, t, ...] each, in the order of the cache's `places`."""
        ...


class Cache(Protocol):
    """A whole model's cache."""

    @property
    def layers(self) -> tuple[CacheLayer, ...]:
        """One a block of the model."""
        ...

    def advance(self, places: Tensor) -> None:
        """Make ready for tokens at these places in their texts, [b, s]; NOTHING is padding. CacheFull where they have
        no room: the cache is then as it was."""
        ...

    @property
    def sight(self) -> Sight:
        """What the tokens of the latest `advance` may read of what `extend` returns."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Let sequence i go on from what sequence rows[i] holds (beam search)."""
        ...

    def held(self) -> Mapping[Component, tuple[Tensor, ...]]:
        """Every tensor that the cache keeps between passes, by what it is for."""
        ...


def sight_of(queries: Tensor, entries: Tensor, window: int | None = None, sinks: int = 0) -> Sight:
    """What queries at places p [b, s] may read of entries at places e [b, t]: suite/models/sight.py has the rule."""
    may = may_see(queries, entries, window, sinks)
    may |= queries.unsqueeze(-1) < 0  # padding reads all, and is read by nobody: a row without any entry would be nan
    return Sight() if bool(may.all()) else Sight(may)


def held_in(layers: Iterable[tuple[Store, ...]]) -> dict[Component, tuple[Tensor, ...]]:
    """What the stores of all layers keep, by what it is for."""
    stores = [pair for layer in layers for pair in zip(LANES, layer, strict=True)]
    held = {lane: tuple(store.payload for component, store in stores if component is lane) for lane in LANES}
    scales = tuple(scale for _, store in stores for scale in store.scales)
    return {**held, Component.SCALES: scales} if scales else held
