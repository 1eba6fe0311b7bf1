"""Dropout whose masks belong to sequences, not to ranks: every layout drops the same elements."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: a sequence's key times this, plus the site, seeds its mask: more sites than any model has
SITES = 2**20


class SequenceDropout(nn.Module):
    """Zeroes a share `rate` of x and scales the rest by 1 / (1 - rate); `site` tells the model's dropouts apart.

    The mask of a sequence follows from its key and the site alone, so it does not matter which rank holds the
    sequence, in which micro-batch it comes, or whether the forward pass runs twice. A rank that holds some of its
    tokens draws the whole mask and takes their rows. Torch's own dropout draws from the rank's stream instead.
    """

    def __init__(self, rate: float, site: int) -> None:
        super().__init__()
        self.rate = rate
        self.site = site
        #: tokens of the whole sequence, and this rank's among them (None: it holds them all)
        self.seq_len = 0
        self.own_positions: Tensor | None = None
        #: which of how many equal parts of the rank's tokens x holds (sequence parallelism sets it)
        self.part = (0, 1)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """x [b, s, h]; keys [b], one a sequence. Without keys, or at rate 0, x as it is."""
        if keys is None or not self.rate:
            return x
        return x.masked_fill(self._dropped(x, keys), 0.0) * (1 / (1 - self.rate))

    def _dropped(self, x: Tensor, keys: Tensor) -> Tensor:
        """Which elements go, [b, s, h]."""
        dropped = torch.empty(x.shape, dtype=torch.bool, device=x.device)
        part, parts = self.part
        length = parts * x.shape[1] if self.own_positions is None else self.seq_len
        for row, key in zip(dropped, keys.tolist(), strict=True):
            draw = torch.Generator(x.device).manual_seed(key * SITES + self.site)
            values = torch.rand(length, x.shape[2], generator=draw, device=x.device)
            mine = values if self.own_positions is None else values[self.own_positions]
            torch.lt(mine.chunk(parts)[part], self.rate, out=row)
        return dropped
