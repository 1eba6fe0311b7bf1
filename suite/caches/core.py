"""Attention through a cache: the cores that take the place of a decoder's own while it answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from suite.cache import LatentForm
from suite.caches.base import Cache, CacheLayer, Sight
from suite.caches.latent_core import LATENT_CORES
from suite.models.blocks import Attention, rotate
from suite.models.decoder_module import Decoder
from suite.models.latent_attention import LatentAttention


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


@contextmanager
def through(model: Decoder, cache: Cache, form: LatentForm = LatentForm.ABSORBED) -> Iterator[None]:
    """Let the model's attention go through a cache; its own cores are back afterwards. form: how latent attention reads
    what it keeps."""
    attentions = [module for module in model.modules() if isinstance(module, Attention | LatentAttention)]
    own = [attention.core for attention in attentions]
    for attention, layer in zip(attentions, cache.layers, strict=True):
        is_latent = isinstance(attention, LatentAttention)
        attention.core = (LATENT_CORES[form] if is_latent else CachedCore)(layer, cache)
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
    model.own_positions = places.clamp(min=0)  # padding is looked up somewhere, and read by nobody
    assert model.norm is not None
    assert model.head is not None
    return model.head(model.norm(model.trunk(ids)[:, -1:]))[:, 0].float()
