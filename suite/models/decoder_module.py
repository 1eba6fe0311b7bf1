"""The decoder as an nn.Module: what the decoder ledger describes, operator by operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from suite.models.blocks import Attention, GeluMLP, Rope, SwiGLU, compute_dtype
from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.models.loss import LOSSES
from suite.spec import AttentionKernel, LossKernel

INIT_STD = 0.02  # Radford et al. 2019; projections into the residual stream are scaled down by sqrt(2 L)


def build_norm(spec: DecoderSpec) -> nn.Module:
    """The norm of the specification, over the hidden width."""
    if spec.norm is Norm.LAYERNORM:
        return nn.LayerNorm(spec.hidden, eps=spec.norm_eps, bias=spec.bias)
    return nn.RMSNorm(spec.hidden, eps=spec.norm_eps)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, spec: DecoderSpec, kernel: AttentionKernel) -> None:
        super().__init__()
        self.attention_norm = build_norm(spec)
        self.attention = Attention(
            spec.hidden, spec.heads, spec.kv_heads, spec.head_dim, spec.projection_bias, spec.bias, kernel
        )
        self.mlp_norm = build_norm(spec)
        mlp = GeluMLP if spec.activation is Activation.GELU else SwiGLU
        self.mlp = mlp(spec.hidden, spec.ffn, spec.bias)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """x [b, s, h] -> [b, s, h]."""
        x = x + self.attention(self.attention_norm(x), rope)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """A decoder-only language model. With labels it returns the mean loss in nats a token, else logits [b, s, V]."""

    def __init__(
        self,
        spec: DecoderSpec,
        kernel: AttentionKernel = AttentionKernel.FLASH,
        loss: LossKernel = LossKernel.PLAIN,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.loss = LOSSES[loss]
        self.embedding = nn.Embedding(spec.vocab, spec.hidden)
        learned = spec.position is Position.LEARNED
        self.positions = nn.Embedding(spec.max_positions, spec.hidden) if learned else None
        self.rope = None if learned else Rope(spec.max_positions, spec.rotary_dim, spec.rope_theta, spec.rope_scaling)
        self.blocks = nn.ModuleList(Block(spec, kernel) for _ in range(spec.layers))
        self.norm = build_norm(spec)
        self.head = nn.Linear(spec.hidden, spec.vocab, bias=False)
        if spec.tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> Tensor:
        """ids [b, s] -> logits [b, s, V]; with labels [b, s], the mean cross-entropy."""
        hidden = self.norm(self.trunk(ids))
        return self.head(hidden) if labels is None else self.loss(self.head, hidden, labels)

    def trunk(self, ids: Tensor) -> Tensor:
        """The residual stream after the last block, [b, s, h]."""
        x = self.embedding(ids)
        if self.positions is not None:
            x = x + self.positions(torch.arange(ids.shape[1], device=ids.device))
        rope = self.rope(ids.shape[1], compute_dtype(x)) if self.rope is not None else None
        for block in self.blocks:
            x = block(x, rope)
        return x

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal(0, 0.02) matrices, residual projections / sqrt(2 L), zero biases, unit norms."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
                continue
            residual = name.endswith(("wo.weight", "down.weight"))
            nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * self.spec.layers) if residual else INIT_STD)
        if self.rope is not None:
            self.rope.reset_parameters()
