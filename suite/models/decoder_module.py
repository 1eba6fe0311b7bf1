"""The decoder as an nn.Module: what the decoder ledger describes, operator by operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from suite.models.blocks import Attention, GeluMLP, Rope, SwiGLU, compute_dtype
from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.models.dropout import SequenceDropout
from suite.models.experts_module import MixtureMLP, mixtures
from suite.models.latent_attention import LatentAttention
from suite.models.loss import LOSSES
from suite.spec import AttentionKernel, LossKernel

INIT_STD = 0.02  # Radford et al. 2019; projections into the residual stream are scaled down by sqrt(2 L)


def build_norm(spec: DecoderSpec) -> nn.Module:
    """The norm of the specification, over the hidden width."""
    if spec.norm is Norm.LAYERNORM:
        return nn.LayerNorm(spec.hidden, eps=spec.norm_eps, bias=spec.bias)
    return nn.RMSNorm(spec.hidden, eps=spec.norm_eps)


def build_attention(spec: DecoderSpec, kernel: AttentionKernel) -> nn.Module:
    """The specification's attention: keys and values of their own, or from a latent."""
    if spec.latent is not None:
        return LatentAttention(spec.hidden, spec.heads, spec.latent, spec.norm_eps, kernel)
    return Attention(
        spec.hidden, spec.heads, spec.kv_heads, spec.head_dim, spec.projection_bias, spec.bias, kernel, spec.window
    )


def build_mlp(spec: DecoderSpec, block: int) -> nn.Module:
    """The MLP of a block: one, or from the first block that is not dense on a mixture of experts."""
    if spec.experts is not None and block >= spec.dense_layers:
        return MixtureMLP(spec.experts, spec.hidden)
    mlp = GeluMLP if spec.activation is Activation.GELU else SwiGLU
    return mlp(spec.hidden, spec.ffn, spec.bias)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); what is added may be dropped out."""

    def __init__(self, spec: DecoderSpec, kernel: AttentionKernel, site: int) -> None:
        super().__init__()
        self.attention_norm = build_norm(spec)
        self.attention = build_attention(spec, kernel)
        self.attention_dropout = SequenceDropout(spec.dropout, site)
        self.mlp_norm = build_norm(spec)
        self.mlp = build_mlp(spec, block=site // 2)
        self.mlp_dropout = SequenceDropout(spec.dropout, site + 1)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None, keys: Tensor | None = None) -> Tensor:
        """x [b, s, h] -> [b, s, h]."""
        x = x + self.attention_dropout(self.attention(self.attention_norm(x), rope), keys)
        return x + self.mlp_dropout(self.mlp(self.mlp_norm(x)), keys)


class Decoder(nn.Module):
    """A decoder-only language model. With labels it returns the mean loss in nats a token, else logits [b, s, V].

    A pipeline stage is a Decoder with some of its parts taken out: without an embedding it takes the residual stream
    instead of ids, without a head it returns it. Blocks keep the names of their places in the whole model.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        kernel: AttentionKernel = AttentionKernel.FLASH,
        loss: LossKernel = LossKernel.PLAIN,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.loss = LOSSES[loss]
        self.embedding: nn.Embedding | None = nn.Embedding(spec.vocab, spec.hidden)
        learned = spec.position is Position.LEARNED
        self.positions = nn.Embedding(spec.max_positions, spec.hidden) if learned else None
        self.rope = None if learned else Rope(spec.max_positions, spec.rotary_dim, spec.rope_theta, spec.rope_scaling)
        self.dropout = SequenceDropout(spec.dropout, site=0)
        self.blocks = nn.ModuleDict({str(index): Block(spec, kernel, 2 * index + 1) for index in range(spec.layers)})
        self.norm: nn.Module | None = build_norm(spec)
        self.head: nn.Module | None = nn.Linear(spec.hidden, spec.vocab, bias=False)
        if spec.tied:
            self.head.weight = self.embedding.weight
        #: places of this rank's tokens in the whole sequence, [s]; None: 0, 1, ... (context parallelism sets it)
        self.own_positions: Tensor | None = None
        #: of so many equal parts of this rank's tokens the residual stream holds one (sequence parallelism sets it)
        self.stream_shards = 1

    def forward(self, ids: Tensor, labels: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """ids [b, s] (or the stream [b, s, h], see above) -> logits [b, s, V]; with labels [b, s], the mean
        cross-entropy. keys [b]: one random key a sequence; without them nothing is dropped out."""
        hidden = self.trunk(ids, keys)
        if self.norm is None or self.head is None:
            return hidden
        hidden = self.norm(hidden)
        return self.head(hidden) if labels is None else self.loss(self.head, hidden, labels)

    def trunk(self, ids: Tensor, keys: Tensor | None = None) -> Tensor:
        """The residual stream after the last block, [b, s, h]."""
        x = ids if self.embedding is None else self._embed(ids, keys)
        places = self.own_positions
        tokens = ids.shape[1] * (self.stream_shards if self.embedding is None else 1)
        length = tokens if places is None else len(places)
        rope = self.rope(length, compute_dtype(x), places) if self.rope is not None else None
        for block in self.blocks.values():
            x = block(x, rope, keys)
        return x

    def _embed(self, ids: Tensor, keys: Tensor | None) -> Tensor:
        assert self.embedding is not None
        x = self.embedding(ids)
        if self.positions is not None:
            places = torch.arange(ids.shape[1], device=ids.device) if self.own_positions is None else self.own_positions
            x = x + self.positions(places)
        return self.dropout(x, keys)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal(0, 0.02) matrices, residual projections / sqrt(2 L), zero biases, unit norms."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
                continue
            residual = name.endswith((".wo.weight", ".down.weight", ".experts.down"))
            nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * self.spec.layers) if residual else INIT_STD)
        if self.rope is not None:
            self.rope.reset_parameters()
        for mixture in mixtures(self):
            mixture.reset_buffers()
