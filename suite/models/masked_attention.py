"""Attention of queries to keys of another sequence, or of their own, under an added mask. Single-device code.

A mask is what is added to scores, [b or 1, a or 1, s, t] or what broadcasts to it: a learned bias, or the type's lowest
number where a query may not read. It is finite, so that a row without a single readable key is an average, not a NaN.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.spec import AttentionKernel


def causal_mask(seq_len: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What hides the keys after a query, [s, s]."""
    return torch.full((seq_len, seq_len), torch.finfo(dtype).min, dtype=dtype, device=device).triu_(1)


class FusedCore(nn.Module):
    """Attention by torch's fused kernel: no [s, t] tensor is kept but a mask that is one. q [b, s, a, d], k and v
    [b, t, a, d]; `is_causal` where no mask says what a query may read."""

    def __init__(self, scale: float, is_causal: bool) -> None:
        super().__init__()
        self.scale = scale
        self.is_causal = is_causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.is_causal, scale=self.scale)
        return out.transpose(1, 2)


class OpenCore(nn.Module):
    """Attention in the open: scores, softmax, weighted sum; probabilities [b, a, s, t] are kept. A mask says all that a
    query may not read."""

    def __init__(self, scale: float, is_causal: bool) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if self.scale != 1:
            q = q * self.scale
        q = q.transpose(1, 2).contiguous()
        scores = torch.matmul(q, k.permute(0, 2, 3, 1))
        if mask is not None:
            scores = scores + mask
        scores = F.softmax(scores, dim=-1)
        return torch.matmul(scores, v.transpose(1, 2)).transpose(1, 2)


MASKED_CORES: dict[AttentionKernel, type[FusedCore] | type[OpenCore]] = {
    AttentionKernel.FLASH: FusedCore,
    AttentionKernel.EAGER: OpenCore,
}


class MaskedAttention(nn.Module):
    """Attention with as many key-value heads as heads, from a stream to itself or to another."""

    def __init__(self, hidden: int, heads: int, head_dim: int, bias: bool, core: nn.Module) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.wq = nn.Linear(hidden, heads * head_dim, bias=bias)
        self.wk = nn.Linear(hidden, heads * head_dim, bias=bias)
        self.wv = nn.Linear(hidden, heads * head_dim, bias=bias)
        self.wo = nn.Linear(heads * head_dim, hidden, bias=bias)
        self.core = core

    def forward(self, x: Tensor, source: Tensor | None, mask: Tensor | None) -> Tensor:
        """x [b, s, h] reads source [b, t, h], itself where there is none -> [b, s, h]."""
        if source is None:
            source = x
        out = self.core(self.heads(self.wq(x)), self.heads(self.wk(source)), self.heads(self.wv(source)), mask)
        return self.wo(out.flatten(2))

    def heads(self, projected: Tensor) -> Tensor:
        """[b, s, a d] -> [b, s, a, d]."""
        return projected.view(*projected.shape[:2], -1, self.head_dim)
