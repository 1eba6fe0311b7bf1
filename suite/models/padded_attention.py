"""Attention in both directions over sequences that end in padding: fused and in the open. Single-device code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.spec import AttentionKernel


def padding_bias(lengths: Tensor, seq_len: int, dtype: torch.dtype) -> Tensor:
    """What is added to scores, [b, 1, 1, s]: 0 for the first lengths[b] keys, the least finite number for padding.

    Finite, so that a sequence of padding alone attends to all of it alike, and makes no NaN.
    """
    is_padding = torch.arange(seq_len, device=lengths.device) >= lengths.unsqueeze(1)
    bias = torch.zeros(is_padding.shape, dtype=dtype, device=lengths.device)
    return bias.masked_fill_(is_padding, torch.finfo(dtype).min)[:, None, None]


class PaddedFlashCore(nn.Module):
    """torch's fused kernel with a bias on keys: no [s, s] tensor is kept. q, k, v [b, s, a, d]; bias [b, 1, 1, s]."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


class PaddedEagerCore(nn.Module):
    """Scores, bias, softmax, weighted sum, each a tensor; probabilities [b, a, s, s] are kept."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        q = (q * q.shape[-1] ** -0.5).transpose(1, 2).contiguous()
        scores = torch.matmul(q, k.permute(0, 2, 3, 1))
        scores = scores + bias
        scores = F.softmax(scores, dim=-1)
        return torch.matmul(scores, v.transpose(1, 2)).transpose(1, 2)


PADDED_CORES: dict[AttentionKernel, type[nn.Module]] = {
    AttentionKernel.FLASH: PaddedFlashCore,
    AttentionKernel.EAGER: PaddedEagerCore,
}
