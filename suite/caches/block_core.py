"""Attention through a block memory: near tokens at their own distances, all others at one (arXiv:2402.04617)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from suite.caches.base import NOTHING
from suite.caches.block_memory import BlockLayer, BlockMemory
from suite.models.blocks import turned, turns_of


class BlockCore(nn.Module):
    """One softmax over sinks, fetched blocks and what is newest. A rotary model sees tokens within the window at their
    own distances, and whatever lies beyond it, sinks included, `window` away, so that no distance is longer than those
    (section 3). Positions that a model has learned are in the keys already.

    What a block's tokens are scored by, to find its representatives, are the q k of attention itself, near as it is.
    """

    def __init__(self, layer: BlockLayer, cache: BlockMemory) -> None:
        super().__init__()
        self.layer, self.cache = layer, cache

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """q [b, s, a, d], k and v [b, s, k, d] of the new tokens, not rotated -> [b, s, a, d]. `rope` is not used: its
        places are those in the text."""
        plan, heads = self.cache.plan, k.shape[2]
        q = q * q.shape[-1] ** -0.5
        keys, values = self.layer.extend(k, v)
        far_q = self._far(q)
        read = (far_q * (plan.queries != NOTHING)[..., None, None]).sum(dim=1).unflatten(1, (heads, -1)).sum(dim=2)
        (far_k, far_v), there = self.layer.fetch(read)
        near = _scores(*self._near(q, keys))
        distance = plan.queries[:, :, None] - plan.entries[:, None, :]
        is_near = distance < self.cache.size.window
        scores = torch.where(is_near[:, None], near, _scores(far_q, keys))
        mask = self.cache.sight.mask
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], float("-inf"))
        fetched = _scores(far_q, far_k).masked_fill(~there[:, None, None], float("-inf"))
        shares = torch.cat((scores, fetched), dim=-1).softmax(dim=-1).to(v.dtype)
        out = _weigh(shares, torch.cat((values, far_v), dim=1))
        is_after = is_near & (distance > 0) & (plan.entries >= 0)[:, None]
        self.layer.keep((keys, values), (near.sum(dim=1) * is_after).sum(dim=1))
        return out

    def _near(self, q: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and entries rotated by their places, counted from the first that the first query's window has: small
        numbers, however long the text."""
        frequencies, plan = self.cache.frequencies, self.cache.plan
        if frequencies is None:
            return q, keys
        first = plan.queries.masked_fill(plan.queries == NOTHING, torch.iinfo(torch.int64).max).amin(dim=1)
        begin = (first - self.cache.size.window + 1).clamp(min=0)[:, None]
        places = (plan.queries - begin).clamp(min=0), (plan.entries - begin).clamp(min=0)
        return turned(q, turns_of(places[0], frequencies)), turned(keys, turns_of(places[1], frequencies))

    def _far(self, q: Tensor) -> Tensor:
        """Queries rotated by the one distance of what is far."""
        if self.cache.frequencies is None:
            return q
        distance = torch.full(q.shape[:2], self.cache.size.window, device=q.device)
        return turned(q, turns_of(distance, self.cache.frequencies))


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """q k of every query head with the key-value head that it reads, [b, a, s, t] in fp32."""
    return torch.einsum("bskgd,btkd->bkgst", q.unflatten(2, (k.shape[2], -1)), k).flatten(1, 2).float()


def _weigh(shares: Tensor, v: Tensor) -> Tensor:
    """Values [b, t, k, d] in these shares [b, a, s, t] -> [b, s, a, d]."""
    return torch.einsum("bkgst,btkd->bskgd", shares.unflatten(1, (v.shape[2], -1)), v).flatten(2, 3)
