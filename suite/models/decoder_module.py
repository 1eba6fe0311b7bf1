"""The decoder as an nn.Module: what the decoder ledger describes, operator by operator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from suite.models.blocks import Attention, GeluMLP, Rope, SwiGLU, compute_dtype
from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.models.dropout import SequenceDropout
from suite.models.experts_module import MixtureMLP, mixtures
from suite.models.latent_attention import LatentAttention
from suite.models.loss import LOSSES
from suite.spec import AttentionKernel, LossKernel

MTP_WEIGHT = 0.3  # arXiv:2412.19437, section 4.2: of the mean over depths, for the first 10 T tokens
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


class Predictor(Block):
    """One depth of multi-token prediction (arXiv:2412.19437, section 2.2): a block that reads, of every token, the
    stream of the depth before and the embedding of the token that follows it there."""

    def __init__(self, spec: DecoderSpec, kernel: AttentionKernel, site: int) -> None:
        super().__init__(spec, kernel, site)
        self.stream_norm = build_norm(spec)
        self.embedding_norm = build_norm(spec)
        self.projection = nn.Linear(2 * spec.hidden, spec.hidden, bias=False)

    def predicted(
        self, streams: Tensor, embedded: Tensor, rope: tuple[Tensor, Tensor] | None, keys: Tensor | None
    ) -> Tensor:
        """streams [b, S, h] of the depths before, one after the other, embedded [b, n, h] -> with this depth's n tokens
        behind them, [b, S + n, h]."""
        length = embedded.shape[1]
        x = torch.cat((self.stream_norm(streams[:, -length - 1 : -1]), self.embedding_norm(embedded)), dim=-1)
        x = self.projection(x).to(streams.dtype)
        turns = None if rope is None else (rope[0][:length], rope[1][:length])
        x = Block.forward(self, x, turns, keys)
        return torch.cat((streams, x), dim=1)

    def forward(self, *given: Any) -> Tensor:
        """As `predicted`."""
        return self.predicted(*given)


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
        self.mtp = nn.ModuleDict(
            {str(depth): Predictor(spec, kernel, 2 * (spec.layers + depth) + 1) for depth in range(spec.mtp)}
        )
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
        if self.mtp and labels is not None and torch.is_grad_enabled():
            return self._several_losses(ids, labels, keys)
        hidden = self.trunk(ids, keys)
        if self.norm is None or self.head is None:
            return hidden
        hidden = self.norm(hidden)
        return self.head(hidden) if labels is None else self.loss(self.head, hidden, labels)

    def _several_losses(self, ids: Tensor, labels: Tensor, keys: Tensor | None) -> Tensor:
        """The loss, with the gradient of MTP_WEIGHT times the mean loss of further tokens too (equations 24 and 25);
        its value is that of the next tokens alone, as everywhere. Streams of all depths are normed together."""
        assert self.norm is not None
        assert self.head is not None
        streams = self._streams(ids, labels, keys)
        lengths = [labels.shape[1] - depth for depth in range(len(self.mtp) + 1)]
        parts = self.norm(streams).split(lengths, dim=1)
        del streams
        first, *further = [
            self.loss(self.head, part, labels[:, depth:] if depth else labels) for depth, part in enumerate(parts)
        ]
        extra = torch.stack(further).mean() * MTP_WEIGHT
        return first + (extra - extra.detach())

    def _streams(self, ids: Tensor, labels: Tensor, keys: Tensor | None) -> Tensor:
        """The stream of the trunk, and behind it each depth's: depth d reads label d - 1 places on, whose own next it
        predicts; the last d tokens have none."""
        assert self.embedding is not None
        streams = self._embed(ids, keys)
        rope = self._turns(ids, streams)
        for block in self.blocks.values():
            streams = block(streams, rope, keys)
        for depth, predictor in enumerate(self.mtp.values()):
            streams = predictor(streams, self.embedding(labels[:, depth:-1]), rope, keys)
        return streams

    def trunk(self, ids: Tensor, keys: Tensor | None = None) -> Tensor:
        """The residual stream after the last block, [b, s, h]."""
        x = ids if self.embedding is None else self._embed(ids, keys)
        rope = self._turns(ids, x)
        for block in self.blocks.values():
            x = block(x, rope, keys)
        return x

    def _turns(self, ids: Tensor, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """The step's rotations of the rank's tokens."""
        places = self.own_positions
        tokens = ids.shape[1] * (self.stream_shards if self.embedding is None else 1)
        length = tokens if places is None else len(places)
        return self.rope(length, compute_dtype(x), places) if self.rope is not None else None

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
