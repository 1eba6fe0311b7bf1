"""Latent attention through a cache of latents and rotated keys, in both forms (arXiv:2405.04434, section 2.1.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from suite.cache import LatentForm
from suite.caches.base import Cache, CacheLayer, Sight
from suite.models.blocks import rotate
from suite.models.latent_attention import keys_of


class _LatentCore(nn.Module):
    """Keeps what a token leaves, its latent and the rotated key that heads share, and reads what all have left."""

    def __init__(self, layer: CacheLayer, cache: Cache) -> None:
        super().__init__()
        self.layer, self.cache = layer, cache

    def forward(
        self, q: Tensor, latent: Tensor, shared: Tensor, rope: tuple[Tensor, Tensor], key_up: nn.Linear,
        value_up: nn.Linear,
    ) -> Tensor:  # fmt: skip
        """q [b, s, a, r + n], latent [b, s, c] and shared [b, s, 1, r] of the new tokens -> [b, s, a, v]."""
        latents, keys = self.layer.extend(latent.unsqueeze(2), rotate(shared, *rope))
        return self.read(rotate(q, *rope), latents, keys, key_up, value_up)

    def read(self, q: Tensor, latents: Tensor, keys: Tensor, key_up: nn.Linear, value_up: nn.Linear) -> Tensor:
        """Attention to all entries: latents [b, t, 1, c], keys [b, t, 1, r] -> [b, s, a, v]."""
        raise NotImplementedError


class PlainLatentCore(_LatentCore):
    """Makes keys and values of all heads from the latents, every entry's in every pass: 2 t c a (n + v) FLOPs each."""

    def read(self, q: Tensor, latents: Tensor, keys: Tensor, key_up: nn.Linear, value_up: nn.Linear) -> Tensor:
        latents, heads = latents.squeeze(2), q.shape[2]
        k = keys_of(latents, keys, key_up, heads)
        v = value_up(latents).view(*latents.shape[:2], heads, -1)
        width, missing = v.shape[-1], k.shape[-1] - v.shape[-1]
        if missing:  # the fused kernel takes one width
            v = F.pad(v, (0, missing))
        return _fused(q, k, v, self.cache.sight, q.shape[-1])[..., :width]


class AbsorbedCore(_LatentCore):
    """Takes queries through the keys' half of the up-projection into the latent space, where all heads read one key of
    width c + r, and the sums of latents through the values' half; the cache is read as it is."""

    def read(self, q: Tensor, latents: Tensor, keys: Tensor, key_up: nn.Linear, value_up: nn.Linear) -> Tensor:
        rotated, heads = keys.shape[-1], q.shape[2]
        up, down = (_own(module).unflatten(0, (heads, -1)) for module in (key_up, value_up))  # [a, n or v, c]
        taken = torch.einsum("bsan,anc->bsac", q[..., rotated:], up.to(q.dtype))
        sums = self._sums(taken, q[..., :rotated], latents, keys, q.shape[-1])
        return torch.einsum("bsac,avc->bsav", sums, down.to(q.dtype))

    def _sums(self, taken: Tensor, turned: Tensor, latents: Tensor, keys: Tensor, width: int) -> Tensor:
        """Each query's sum of latents, [b, s, a, c]. Of one token a pass all heads share one product over the cache as
        it lies; of several the fused kernel keeps their scores from being a tensor, for a copy of the entries."""
        sight = self.cache.sight
        if taken.shape[1] > 1:
            entries = torch.cat((latents, keys), dim=-1)
            out = _fused(torch.cat((taken, turned), dim=-1), entries, entries, sight, width)
            return out[..., : latents.shape[-1]]
        latents, keys = latents.squeeze(2), keys.squeeze(2)
        scores = torch.baddbmm(taken.squeeze(1) @ latents.mT, turned.squeeze(1), keys.mT) * width**-0.5
        if sight.mask is not None:
            scores = scores.masked_fill(~sight.mask, float("-inf"))
        return (F.softmax(scores, dim=-1) @ latents).unsqueeze(1)


#: form -> its core
LATENT_CORES: dict[LatentForm, type[_LatentCore]] = {
    LatentForm.ABSORBED: AbsorbedCore, LatentForm.PLAIN: PlainLatentCore,
}  # fmt: skip


def _own(module: nn.Linear) -> Tensor:
    """The weight, or of a divided one this rank's part."""
    return module.weight.to_local() if isinstance(module.weight, DTensor) else module.weight


def _fused(q: Tensor, k: Tensor, v: Tensor, sight: Sight, width: int) -> Tensor:
    """softmax(q k^T / sqrt(width)) v over what each query may see; [b, s, a, d] with k and v of a heads, or of one."""
    mask = None if sight.mask is None else sight.mask.unsqueeze(1)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, is_causal=sight.is_causal,
        scale=width**-0.5, enable_gqa=q.shape[2] != k.shape[2],
    )  # fmt: skip
    return out.transpose(1, 2)
