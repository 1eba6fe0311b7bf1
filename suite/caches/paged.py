"""A paged cache (PagedAttention, arXiv:2309.06180, section 4): sequences take pages of one pool as tokens come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from suite.cache_shape import CacheShape
from suite.caches.base import NOTHING, Sight, held_in, sight_of
from suite.caches.flat import copy_entries, zeroed
from suite.caches.full import MakeStore
from suite.caches.page_table import Copy, PageTable
from suite.caches.store import Store
from suite.record import Component
from suite.serving_lengths import pages_for


@dataclass(frozen=True)
class Slots:
    """Where the tokens of a pass lie in the pool: entries `at` [n] are written with those of the new tokens [b, s] that
    are none of padding (None: all of them); entries `read` [b, t] are what attention gathers."""

    at: Tensor
    kept: Tensor | None
    read: Tensor


class PagedLayer:
    """One layer: a pool a lane, [1, pages * page_tokens, heads, width] in a store; entry i lies in page
    i // page_tokens."""

    def __init__(self, stores: tuple[Store, ...], cache: PagedCache) -> None:
        self.stores = tuple(zeroed(store) for store in stores)
        self._cache = cache

    def extend(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Keep the new tokens' lanes, but no padding; every entry of the longest table's pages of every sequence."""
        slots = self._cache.slots
        for store, lane in zip(self.stores, new, strict=True):
            tokens = lane.flatten(0, 1) if slots.kept is None else lane[slots.kept]
            store.write(slots.at, tokens.unsqueeze(0))
        gathered = (store.read(slots.read.flatten()) for store in self.stores)
        return tuple(lane.view(*slots.read.shape, *lane.shape[2:]) for lane in gathered)


class PagedCache:
    """Every token of every sequence, in a pool of sequences * ceil(room / page_tokens) pages that all of them share.

    A prompt's padding takes none of them, and a short sequence leaves its share to a long one. The block table
    [sequences, pages a sequence] (int64, 0 where there is none) says which; free pages and reference counts are the
    host's. Tokens of a sequence come in their order without a gap, whatever padding stands before or behind them.
    `window`: places that a query may see, its own included (None: all); none of them is given back.
    """

    def __init__(
        self, shape: CacheShape, make: MakeStore, device: torch.device, page_tokens: int, window: int | None = None
    ) -> None:
        most = pages_for((max(shape.room, shape.held),), page_tokens)
        pages = shape.sequences * pages_for((shape.room,), page_tokens)
        self.pages = PageTable(pages, page_tokens, shape.sequences, most)
        self.table = torch.zeros(shape.sequences, most, dtype=torch.int64, device=device)
        self._window = window
        self._layers = tuple(
            PagedLayer(tuple(make(1, pages * page_tokens, lane) for lane in shape.lanes), self)
            for _ in range(shape.layers)
        )
        nothing = torch.empty(shape.sequences, 0, dtype=torch.int64, device=device)
        self._slots, self._sight = Slots(nothing.flatten(), None, nothing), Sight()

    @property
    def layers(self) -> tuple[PagedLayer, ...]:
        """One a block of the model."""
        return self._layers

    @property
    def slots(self) -> Slots:
        """Where the tokens of the latest `advance` lie."""
        return self._slots

    @property
    def sight(self) -> Sight:
        """What the latest tokens may read."""
        return self._sight

    def advance(self, places: Tensor) -> None:
        """Make ready for tokens at these places: take pages for them."""
        kept, size = places != NOTHING, self.pages.page_tokens
        before = torch.tensor(self.pages.lengths, device=places.device)
        ends = before + kept.sum(dim=1)
        assert bool((~kept | ((places >= before[:, None]) & (places < ends[:, None]))).all())
        for copy in self.pages.extend(ends.tolist()):
            self._copy(copy)
        self._write_table()
        at = self.table.gather(1, places.clamp(min=0) // size) * size + places % size
        columns = max(1, pages_for((int(ends.max()),), size))
        read = self.table[:, :columns, None] * size + torch.arange(size, device=places.device)
        is_whole = bool(kept.all())
        self._slots = Slots(at.flatten() if is_whole else at[kept], None if is_whole else kept, read.flatten(1))
        entries = torch.arange(columns * size, device=places.device)
        entries = torch.where(entries < ends[:, None], entries, NOTHING)
        self._sight = sight_of(places, entries, self._window)

    def _copy(self, copy: Copy) -> None:
        source, target = (page * self.pages.page_tokens for page in (copy.source, copy.target))
        for store in (store for layer in self._layers for store in layer.stores):
            copy_entries(store, slice(source, source + copy.entries), slice(target, target + copy.entries))

    def _write_table(self) -> None:
        most = self.table.shape[1]
        rows = [[*pages, *(0 for _ in range(most - len(pages)))] for pages in self.pages.taken]
        self.table.copy_(torch.tensor(rows))

    def reorder(self, rows: Tensor) -> None:
        """Let sequence i go on from what sequence rows[i] holds: pages are shared, none is copied yet."""
        self.pages.reorder(rows.tolist())
        self._write_table()

    def release(self, sequence: int) -> None:
        """Give back the pages of a sequence that has ended."""
        self.pages.release(sequence)
        self._write_table()

    def held(self) -> Mapping[Component, tuple[Tensor, ...]]:
        """Pools by what they are for, and the block table."""
        return {**held_in([layer.stores for layer in self._layers]), Component.TABLES: (self.table,)}
