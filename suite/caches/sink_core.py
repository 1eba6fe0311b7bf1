"""Attention through a cache whose places are counted anew: sinks and a window (arXiv:2309.17453, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.caches.attend import attend
from suite.caches.base import CacheLayer, Sight
from suite.caches.sinks import SinkCache
from suite.models.blocks import rotate, turned


class RecountingCore(nn.Module):
    """Keys are kept as they are, and rotated on reading by their places within the cache."""

    def __init__(self, layer: CacheLayer, cache: SinkCache) -> None:
        super().__init__()
        self.layer, self.cache = layer, cache

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """q [b, s, a, d], k and v [b, s, k, d] of the new tokens, rope at the cache's `positions` -> [b, s, a, d]."""
        assert rope is not None
        keys, values = self.layer.extend(k, v)
        count = self.cache.recount
        keys, counted = turned(keys, count.entries), rotate(q, *rope)
        if count.queries is None or count.sinks is None:
            return attend(counted, keys, values, self.cache.sight)
        return _attend_apart(counted, turned(q, count.queries), keys, values, count.sinks, self.cache.sight)


def _attend_apart(q_sinks: Tensor, q_rest: Tensor, k: Tensor, v: Tensor, sinks: Tensor, sight: Sight) -> Tensor:
    """As `attend`, with queries [b, s, a, d] in the one form for the keys that are sinks [b, t], in the other for the
    rest: both forms behind each other, over keys that are zero in the half that is not for them."""
    width, is_sink = k.shape[-1], sinks[..., None, None]
    q = torch.cat((q_sinks, q_rest), dim=-1)
    k = torch.cat((k.masked_fill(~is_sink, 0), k.masked_fill(is_sink, 0)), dim=-1)
    return attend(q, k, F.pad(v, (0, width)), sight, width**-0.5)[..., :width]
