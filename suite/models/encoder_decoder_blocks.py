"""Blocks of encoder-decoders: the Transformer's, normalised after each sub-block, and T5's, before. Single-device."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from suite.models.encoder_decoder import Feed
from suite.models.masked_attention import MASKED_CORES, MaskedAttention
from suite.models.t5 import T5Spec
from suite.models.transformer import TransformerSpec
from suite.spec import AttentionKernel


class ReluMLP(nn.Module):
    """down(relu(up(x)))."""

    def __init__(self, hidden: int, ffn: int, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, ffn, bias=bias)
        self.down = nn.Linear(ffn, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [b, s, h] -> [b, s, h]."""
        return self.down(F.relu(self.up(x)))


class GatedGelu(nn.Module):
    """down(gelu(gate(x)) * up(x)), tanh form (arXiv:2002.05202)."""

    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, ffn, bias=False)
        self.up = nn.Linear(hidden, ffn, bias=False)
        self.down = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [b, s, h] -> [b, s, h]."""
        return self.down(F.gelu(self.gate(x), approximate="tanh") * self.up(x))


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), of a decoder the same with cross-attention, and with the feed-forward network
    (arXiv:1706.03762, section 3.1)."""

    def __init__(self, spec: TransformerSpec, kernel: AttentionKernel, is_decoder: bool) -> None:
        super().__init__()

        def attention(is_causal: bool) -> MaskedAttention:
            core = MASKED_CORES[kernel](spec.head_dim**-0.5, is_causal)
            return MaskedAttention(spec.hidden, spec.heads, spec.head_dim, spec.attention_bias, core)

        def norm() -> nn.Module:
            return nn.LayerNorm(spec.hidden, eps=spec.norm_eps)

        self.attention, self.attention_norm = attention(is_decoder), norm()
        self.cross: MaskedAttention | None = attention(False) if is_decoder else None
        self.cross_norm: nn.Module | None = norm() if is_decoder else None
        self.mlp, self.mlp_norm = ReluMLP(spec.hidden, spec.ffn, bias=True), norm()

    def forward(
        self, x: Tensor, mask: Tensor | None, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        """x [b, s, h] -> [b, s, h]; of a decoder memory [b, t, h], what the encoder made."""
        x = self.attention_norm(x + self.attention(x, None, mask))
        if self.cross is not None and self.cross_norm is not None:
            x = self.cross_norm(x + self.cross(x, memory, memory_mask))
        return self.mlp_norm(x + self.mlp(x))


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), of a decoder the same with cross-attention, and with the feed-forward network. The mask
    of self-attention carries the stack's relative-position bias, which is learned: it runs in the open."""

    def __init__(self, spec: T5Spec, kernel: AttentionKernel, is_decoder: bool) -> None:
        super().__init__()

        def attention(kernel: AttentionKernel) -> MaskedAttention:
            core = MASKED_CORES[kernel](1.0, False)
            return MaskedAttention(spec.hidden, spec.heads, spec.head_dim, False, core)

        def norm() -> nn.Module:
            return nn.RMSNorm(spec.hidden, eps=spec.norm_eps)

        self.attention_norm, self.attention = norm(), attention(AttentionKernel.EAGER)
        self.cross_norm: nn.Module | None = norm() if is_decoder else None
        self.cross: MaskedAttention | None = attention(kernel) if is_decoder else None
        is_gated = spec.feed is Feed.GATED_GELU
        self.mlp_norm = norm()
        self.mlp = GatedGelu(spec.hidden, spec.ffn) if is_gated else ReluMLP(spec.hidden, spec.ffn, bias=False)

    def forward(
        self, x: Tensor, mask: Tensor | None, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        """x [b, s, h] -> [b, s, h]; of a decoder memory [b, t, h], what the encoder made."""
        x = x + self.attention(self.attention_norm(x), None, mask)
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.cross(self.cross_norm(x), memory, memory_mask)
        return x + self.mlp(self.mlp_norm(x))
