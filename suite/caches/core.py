"""Attention through a cache: the cores that take the place of a decoder's own while it answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.caches.base import Cache, CacheLayer, Sight
from suite.caches.block_core import BlockCore
from suite.caches.block_memory import BlockLayer, BlockMemory
from suite.caches.sinks import SinkCache
from suite.models.blocks import Attention, rotate, turned
from suite.models.decoder_module import Decoder


def attend(q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over what each query may see: q [b, s, a, d], k and v [b, t, k, d] -> [b, s, a, d]."""
    grouped = q.shape[2] != k.shape[2]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    mask = None if sight.mask is None else sight.mask.unsqueeze(1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=sight.is_causal, enable_gqa=grouped)
    return out.transpose(1, 2)


class CachedCore(nn.Module):
    """Keys are kept rotated by their places in the text; a query reads them with those of its own pass."""

    def __init__(self, layer: CacheLayer, cache: Cache) -> None:
        super().__init__()
        self.layer, self.cache = layer, cache

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """q [b, s, a, d], k and v [b, s, k, d] of the new tokens -> [b, s, a, d]."""
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        keys, values = self.layer.extend(k, v)
        return attend(q, keys, values, self.cache.sight)


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


def core_of(layer: CacheLayer, cache: Cache) -> nn.Module:
    """The core that reads such a cache."""
    if isinstance(layer, BlockLayer) and isinstance(cache, BlockMemory):
        return BlockCore(layer, cache)
    return RecountingCore(layer, cache) if isinstance(cache, SinkCache) else CachedCore(layer, cache)


@contextmanager
def through(model: Decoder, cache: Cache) -> Iterator[None]:
    """Let the model's attention go through a cache; its own cores are back afterwards."""
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    own = [attention.core for attention in attentions]
    for attention, layer in zip(attentions, cache.layers, strict=True):
        attention.core = core_of(layer, cache)
    try:
        yield
    finally:
        for attention, core in zip(attentions, own, strict=True):
            attention.core = core
        model.own_positions = None


def next_logits(model: Decoder, cache: Cache, ids: Tensor, places: Tensor) -> Tensor:
    """Read tokens [b, s] that stand at these places [b, s] into the cache; logits of the last one, [b, V] in fp32.
    To be called within `through`; CacheFull where there is no room."""
    cache.advance(places)
    # padding is looked up somewhere, and read by nobody
    model.own_positions = cache.positions if isinstance(cache, SinkCache | BlockMemory) else places.clamp(min=0)
    assert model.norm is not None
    assert model.head is not None
    return model.head(model.norm(model.trunk(ids)[:, -1:]))[:, 0].float()
