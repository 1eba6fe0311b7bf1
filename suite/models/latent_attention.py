"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): keys and values of all heads are made from
one latent a token, beside a rotated key that the heads share. Single-device code, written as suite/models/blocks.py is.

Each head's channels are ordered [rotated, not rotated], and rope rotates halves as pairs, as everywhere in our models;
DeepSeek's checkpoints have the rotated ones last and interleave the pairs (parallelism/hf_reference.py reorders rows).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.models.blocks import CORES, rotate
from suite.models.latent_shape import Latent
from suite.spec import AttentionKernel


class LatentNorm(nn.RMSNorm):
    """RMSNorm of what may be narrower than its weight, as under autocast: the weight is read in x's type, which the
    fused kernel needs."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def keys_of(latent: Tensor, shared: Tensor, key_up: nn.Module, heads: int) -> Tensor:
    """Keys of all heads, [b, t, a, r + n]: the shared rotated key [b, t, 1, r], then the head's own part of the latent
    [b, t, c]."""
    own = key_up(latent)
    return torch.cat((shared.expand(-1, -1, heads, -1), own.view(*own.shape[:2], heads, -1)), dim=-1)


class LatentCore(nn.Module):
    """Causal attention over keys and values that are made from latents. q [b, s, a, r + n], latent [b, s, c], shared
    [b, s, 1, r]; key_up and value_up take a latent to every head's key and value."""

    def __init__(self, kernel: AttentionKernel) -> None:
        super().__init__()
        self.attend = CORES[kernel]()
        self.pads = kernel is AttentionKernel.FLASH  # which takes one width

    def forward(
        self, q: Tensor, latent: Tensor, shared: Tensor, rope: tuple[Tensor, Tensor], key_up: nn.Module,
        value_up: nn.Module,
    ) -> Tensor:  # fmt: skip
        """-> [b, s, a, v]."""
        heads = q.shape[2]
        q, shared = rotate(q, *rope), rotate(shared, *rope)
        k = keys_of(latent, shared, key_up, heads)
        v = value_up(latent).view(*latent.shape[:2], heads, -1)
        missing = k.shape[-1] - v.shape[-1] if self.pads else 0
        if not missing:
            return self.attend(q, k, v, None)
        v = F.pad(v, (0, missing))
        return self.attend(q, k, v, None)[..., :-missing]


class LatentAttention(nn.Module):
    """Self-attention through latents of kv_rank elements; queries come through q_rank elements where it is given."""

    def __init__(self, hidden: int, heads: int, latent: Latent, norm_eps: float, kernel: AttentionKernel) -> None:
        super().__init__()
        self.key_dim = latent.key_dim
        queries = heads * latent.key_dim
        if latent.q_rank:
            self.wq_down = nn.Linear(hidden, latent.q_rank, bias=False)
            self.q_norm = LatentNorm(latent.q_rank, eps=norm_eps)
            self.wq_up = nn.Linear(latent.q_rank, queries, bias=False)
        else:
            self.wq = nn.Linear(hidden, queries, bias=False)
        self.wkv_down = nn.Linear(hidden, latent.kv_rank, bias=False)
        self.kv_norm = LatentNorm(latent.kv_rank, eps=norm_eps)
        self.wk_rope = nn.Linear(hidden, latent.rope_dim, bias=False)
        self.wk_up = nn.Linear(latent.kv_rank, heads * latent.nope_dim, bias=False)
        self.wv_up = nn.Linear(latent.kv_rank, heads * latent.v_dim, bias=False)
        self.wo = nn.Linear(heads * latent.v_dim, hidden, bias=False)
        self.q_rank = latent.q_rank
        self.core: nn.Module = LatentCore(kernel)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """x [b, s, h] -> [b, s, h]."""
        out = self.core(
            self._queries(x).view(*x.shape[:2], -1, self.key_dim), self.kv_norm(self.wkv_down(x)),
            self.wk_rope(x).unsqueeze(2), rope, self.wk_up, self.wv_up,
        )  # fmt: skip
        return self.wo(out.flatten(2))

    def _queries(self, x: Tensor) -> Tensor:
        return self.wq_up(self.q_norm(self.wq_down(x))) if self.q_rank else self.wq(x)
