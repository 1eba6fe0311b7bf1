"""Attention sinks (StreamingLLM, arXiv:2309.17453, section 3.2): the first tokens beside the newest, counted anew."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from suite.cache_shape import CacheShape
from suite.caches.full import MakeStore
from suite.caches.rolling import RollingCache
from suite.models.blocks import turns_of

#: cosines and sines, [b, n, 1, rotary_dim / 2] in fp32
Turns = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recount:
    """How the keys of a pass are rotated as they are read: by places within the cache.

    One count of the entries serves all queries where all see the same ones. Where a pass runs on beyond the window, it
    is its last query's, and an earlier one stands at two places: to the newest tokens at `queries`, as far from them as
    in the text, and to the `sinks` [b, t] at its own count, which the model is told.
    """

    entries: Turns
    queries: Turns | None = None
    sinks: Tensor | None = None


class SinkCache(RollingCache):
    """A rolling buffer whose keys are kept unrotated. Of n entries that a query sees, in the order of the text, the
    places are 0 .. n - 1, its own the last: no place is ever beyond sinks + window, however long the text."""

    def __init__(
        self, shape: CacheShape, make: MakeStore, device: torch.device, window: int, sinks: int, frequencies: Tensor
    ) -> None:
        super().__init__(shape, make, device, window, sinks)
        self._frequencies = frequencies.to(device)  # of the model's rotation, [rotary_dim / 2]
        self._recount = Recount(turns_of(self.entries, self._frequencies))
        self._positions = self.entries

    @property
    def positions(self) -> Tensor:
        """Places of the latest tokens within what each of them sees, [b, s]."""
        return self._positions

    @property
    def recount(self) -> Recount:
        """How the keys that the latest tokens read are rotated."""
        return self._recount

    def advance(self, places: Tensor) -> None:
        """Make ready for tokens at these places in their texts, [b, s], rising in every row."""
        super().advance(places)
        last = self.sinks + self.window - 1
        self._positions = places.clamp(min=0, max=last)
        gone = (places.amax(dim=1, keepdim=True) - last).clamp(min=0)  # tokens that the row's newest cannot see
        entries = torch.where(self.entries < self.sinks, self.entries, self.entries - gone)
        self._recount = Recount(turns_of(entries, self._frequencies))
        if self.latest.overwrites:
            queries = turns_of(places - gone, self._frequencies)
            self._recount = Recount(self._recount.entries, queries, self.entries < self.sinks)
