"""What a pass reads of a cache, counted in the bytes that are stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from suite.caches.base import Cache
from suite.caches.store import Entries, Pairs, Store
from suite.generation.texts import CachedText
from suite.models.decoder_module import Decoder
from suite.record import Component


class CountingStore:
    """A store that counts the entries it is asked for: bytes as they lie there, before any cast or decoding. An entry
    that one read asks for twice counts once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.entries = 0

    def read(self, at: Entries) -> Tensor:
        """The store's own, counted."""
        self.entries += _count(at, self._store.payload.shape[1])
        return self._store.read(at)

    def write(self, at: Entries | Pairs, x: Tensor) -> None:
        """The store's own."""
        self._store.write(at, x)

    def append(self, x: Tensor) -> None:
        """The store's own."""
        self._store.append(x)

    def reorder(self, rows: Tensor) -> None:
        """The store's own."""
        self._store.reorder(rows)

    @property
    def payload(self) -> Tensor:
        """The store's own."""
        return self._store.payload

    @property
    def scales(self) -> tuple[Tensor, ...]:
        """The store's own."""
        return self._store.scales


class Reads:
    """Counts of all stores of a cache, over the latest pass."""

    def __init__(self) -> None:
        self._stores: list[CountingStore] = []

    def around(self, store: Store) -> Store:
        """The store, counted from now on."""
        self._stores.append(CountingStore(store))
        return self._stores[-1]

    def forget(self) -> None:
        """A pass begins."""
        for store in self._stores:
            store.entries = 0

    def nbytes(self, held: Mapping[Component, tuple[Tensor, ...]]) -> dict[Component, int]:
        """Bytes of the entries that the latest pass read, each of a store's tensors by the component that it is `held`
        as: a lane's numbers or codes, scales beside them, or the host's blocks with theirs."""
        found: dict[Component, int] = defaultdict(int)
        component_of = {tensor.data_ptr(): component for component, tensors in held.items() for tensor in tensors}
        for store in (store for store in self._stores if store.entries):
            for tensor in (store.payload, *store.scales):
                found[component_of[tensor.data_ptr()]] += _bytes(tensor, store.entries)
        return dict(found)


class CountedText(CachedText):
    """A text whose reads of the cache are counted from the start of each pass."""

    def __init__(self, model: Decoder, cache: Cache, pads: Tensor, piece: int, reads: Reads) -> None:
        super().__init__(model, cache, pads, piece)
        self._reads = reads

    def pass_over(self, ids: Tensor) -> Tensor:
        """A pass begins."""
        self._reads.forget()
        return super().pass_over(ids)


def _count(at: Entries, entries: int) -> int:
    """Different entries among those asked for."""
    return len(range(*at.indices(entries))) if isinstance(at, slice) else len(torch.unique(at))


def _bytes(tensor: Tensor, entries: int) -> int:
    """Bytes of so many of a store's entries, of all its sequences."""
    return tensor.nbytes // tensor.shape[1] * entries
