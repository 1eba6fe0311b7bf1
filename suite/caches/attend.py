"""Attention over what a cache returns: the core of most caches, whose keys are kept rotated by their places."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from suite.caches.base import Cache, CacheLayer, Sight
from suite.models.blocks import rotate


def attend(q: Tensor, k: Tensor, v: Tensor, sight: Sight, scale: float | None = None) -> Tensor:
    """softmax(q k^T scale) v over what each query may see: q [b, s, a, d], k and v [b, t, k, d] -> [b, s, a, d]; the
    scale is 1 / sqrt(d) where none is given."""
    grouped = q.shape[2] != k.shape[2]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    mask = None if sight.mask is None else sight.mask.unsqueeze(1)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=sight.is_causal, scale=scale, enable_gqa=grouped
    )
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
