"""Attention through a cache whose places are counted anew: sinks and a window (arXiv:2309.17453, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from suite.caches.attend import attend
from suite.caches.base import CacheLayer, Sight
from suite.caches.sinks import SinkCache
from suite.models.blocks import rotate


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
        keys, counted = _turned(keys, count.entries), rotate(q, *rope)
        if count.queries is None or count.sinks is None:
            return attend(counted, keys, values, self.cache.sight)
        return _attend_apart(counted, _turned(q, count.queries), keys, values, count.sinks, self.cache.sight)


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turns
    return rotate(x, cos.to(x.dtype), sin.to(x.dtype))


def _attend_apart(q_sinks: Tensor, q_rest: Tensor, k: Tensor, v: Tensor, sinks: Tensor, sight: Sight) -> Tensor:
    """As `attend`, in the open: queries [b, s, a, d] in the one form for the keys that are sinks [b, t], in the other
    for the rest. Scores [b, a, s, t] are held in fp32: no fused kernel has queries that differ from key to key."""
    groups = (k.shape[2], -1)
    scores = torch.where(
        sinks[:, None, None, None],
        torch.einsum("bskgd,btkd->bkgst", q_sinks.unflatten(2, groups), k),
        torch.einsum("bskgd,btkd->bkgst", q_rest.unflatten(2, groups), k),
    )
    scores = scores.float() * k.shape[-1] ** -0.5
    if sight.mask is not None:
        scores = scores.masked_fill(~sight.mask[:, None, None], float("-inf"))
    return torch.einsum("bkgst,btkd->bskgd", scores.softmax(-1).to(v.dtype), v).flatten(2, 3)
