"""Texts that a model reads on: through a cache, or whole again each time. Shorter ones begin further to the right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from suite.caches.base import NOTHING, Cache
from suite.caches.core import next_logits
from suite.models.blocks import EagerCore, FlashCore
from suite.models.decoder_module import Decoder


class Text(Protocol):
    """Sequences side by side, each with its padding in front."""

    def read(self, ids: Tensor) -> Tensor:
        """Tokens [b, s] more of each; logits of the last ones, [b, V] in fp32. CacheFull where they have no room."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Let sequence i go on from sequence rows[i], which is as long."""
        ...


class CachedText:
    """Read through a cache, every token once, within `suite.caches.core.through`; at most `piece` tokens of each
    sequence a forward pass (0: all)."""

    def __init__(self, model: Decoder, cache: Cache, pads: Tensor, piece: int = 0) -> None:
        self.model, self.cache, self.pads, self.piece = model, cache, pads, piece
        self.length = 0

    def read(self, ids: Tensor) -> Tensor:
        """Only the new tokens are read."""
        for part in ids.split(self.piece or ids.shape[1], dim=1):
            logits = self.pass_over(part)
        return logits

    def pass_over(self, ids: Tensor) -> Tensor:
        """One forward pass over the next tokens [b, s]; logits of the last ones."""
        places = torch.arange(self.length, self.length + ids.shape[1], device=ids.device) - self.pads.unsqueeze(-1)
        logits = next_logits(self.model, self.cache, ids, places.masked_fill(places < 0, NOTHING))
        self.length += ids.shape[1]
        return logits

    def reorder(self, rows: Tensor) -> None:
        """The cache is told."""
        self.cache.reorder(rows)


class WholeText:
    """Read from its first token each time: what a cache is held to. Padding is cut off, never read."""

    def __init__(self, model: Decoder, pads: Tensor) -> None:
        self.model, self.pads = model, pads
        self.ids = torch.empty(len(pads), 0, dtype=torch.int64, device=pads.device)

    def read(self, ids: Tensor) -> Tensor:
        """All tokens are read again, sequences of one length together."""
        self.ids = torch.cat((self.ids, ids), dim=1)
        return logits_of(self.model, self.ids, self.pads, 1)[:, 0]

    def reorder(self, rows: Tensor) -> None:
        """Its ids are put in another order."""
        self.ids = self.ids[rows]


@contextmanager
def within(model: Decoder, window: int | None) -> Iterator[None]:
    """Let the model's own attention see the newest `window` tokens (None: all), as through a cache of no more."""
    cores = [module for module in model.modules() if isinstance(module, FlashCore | EagerCore)]
    own = [core.window for core in cores]
    for core in cores:
        core.window = window
    try:
        yield
    finally:
        for core, before in zip(cores, own, strict=True):
            core.window = before


def logits_of(model: Decoder, ids: Tensor, pads: Tensor, last: int) -> Tensor:
    """Logits of the last tokens of whole texts [b, s], read in one pass without a cache: [b, last, V] in fp32. A
    sequence begins behind its padding, pads [b]."""
    assert model.norm is not None
    assert model.head is not None
    found: list[Tensor] = [torch.empty(0)] * len(ids)
    for pad in pads.unique().tolist():
        rows = (pads == pad).nonzero()[:, 0]
        logits = model.head(model.norm(model.trunk(ids[rows, pad:])[:, -last:])).float()
        for row, mine in zip(rows.tolist(), logits, strict=True):
            found[row] = mine
    return torch.stack(found)
