"""The decoder as an nn.Module: what the decoder ledger describes, operator by operator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from suite.models.alibi import Alibi
from suite.models.batch_norm import TokenBatchNorm
from suite.models.blocks import CORES, Attention, EagerCore, GeluMLP, Places, Rope, SwiGLU, compute_dtype
from suite.models.decoder import Activation, DecoderSpec, Mixing, Norm, Position
from suite.models.dropout import SequenceDropout
from suite.models.experts_module import MixtureMLP, mixtures
from suite.models.latent_attention import LatentAttention
from suite.models.linear_attention import LinearCore
from suite.models.loss import LOSSES
from suite.models.sinusoidal import Sinusoids
from suite.spec import AttentionKernel, LossKernel

MTP_WEIGHT = 0.3  # arXiv:2412.19437, section 4.2: of the mean over depths, for the first 10 T tokens
INIT_STD = 0.02  # Radford et al. 2019; projections into the residual stream are scaled down by sqrt(2 L)


def build_norm(spec: DecoderSpec) -> nn.Module:
    """The norm of the specification, over the hidden width."""
    if spec.norm is Norm.LAYERNORM:
        return nn.LayerNorm(spec.hidden, eps=spec.norm_eps, bias=spec.bias)
    if spec.norm is Norm.BATCHNORM:
        return TokenBatchNorm(spec.hidden, spec.norm_eps, spec.bias)
    return nn.RMSNorm(spec.hidden, eps=spec.norm_eps)


def build_attention(spec: DecoderSpec, kernel: AttentionKernel) -> nn.Module:
    """The specification's attention: keys and values of their own, or from a latent."""
    if spec.latent is not None:
        return LatentAttention(spec.hidden, spec.heads, spec.latent, spec.norm_eps, kernel)
    return Attention(
        spec.hidden, spec.heads, spec.kv_heads, spec.head_dim, spec.projection_bias, spec.bias, build_core(spec, kernel)
    )


def build_core(spec: DecoderSpec, kernel: AttentionKernel) -> nn.Module:
    """What makes attention's output of queries, keys and values."""
    if spec.mixing is Mixing.LINEAR:
        return LinearCore(kernel)
    if spec.position is Position.ALIBI and kernel is AttentionKernel.EAGER:
        return EagerCore(spec.window, Alibi(spec.heads, spec.window))
    return CORES[kernel](spec.window)


def build_mlp(spec: DecoderSpec, block: int) -> nn.Module:
    """The MLP of a block: one of width ffn, or from the first block that is not dense on a mixture of experts."""
    if spec.experts is not None and block >= spec.dense_layers:
        return MixtureMLP(spec.experts, spec.hidden)
    if spec.activation is Activation.SWIGLU:
        return SwiGLU(spec.hidden, spec.ffn, spec.bias)
    return GeluMLP(spec.hidden, spec.ffn, spec.bias, "tanh" if spec.activation is Activation.GELU else "none")


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

    def forward(self, x: Tensor, places: Places, keys: Tensor | None = None) -> Tensor:
        """x [b, s, h] -> [b, s, h]."""
        x = x + self.attention_dropout(self.attention(self.attention_norm(x), places), keys)
        return x + self.mlp_dropout(self.mlp(self.mlp_norm(x)), keys)


class Predictor(Block):
    """One depth of multi-token prediction (arXiv:2412.19437, section 2.2): a block that reads, of every token, the
    stream of the depth before and the embedding of the token that follows it there."""

    def __init__(self, spec: DecoderSpec, kernel: AttentionKernel, site: int) -> None:
        super().__init__(spec, kernel, site)
        self.stream_norm = build_norm(spec)
        self.embedding_norm = build_norm(spec)
        self.projection = nn.Linear(2 * spec.hidden, spec.hidden, bias=False)

    def predicted(self, streams: Tensor, embedded: Tensor, rope: Places, keys: Tensor | None) -> Tensor:
        """streams [b, S, h] of the depths before, one after the other, embedded [b, n, h] -> with this depth's n tokens
        behind them, [b, S + n, h]."""
        length = embedded.shape[1]
        x = torch.cat((self.stream_norm(streams[:, -length - 1 : -1]), self.embedding_norm(embedded)), dim=-1)
        x = self.projection(x).to(streams.dtype)
        assert isinstance(rope, tuple)
        x = Block.forward(self, x, (rope[0][:length], rope[1][:length]), keys)
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
        self.positions = nn.Embedding(spec.max_positions, spec.hidden) if spec.position is Position.LEARNED else None
        is_sinusoidal = spec.position is Position.SINUSOIDAL
        self.sinusoids = Sinusoids(spec.max_positions, spec.hidden) if is_sinusoidal else None
        self.rope = (
            Rope(spec.max_positions, spec.rotary_dim, spec.rope_theta, spec.rope_scaling)
            if spec.position is Position.ROPE
            else None
        )
        is_shared = spec.position is Position.ALIBI and kernel is AttentionKernel.FLASH
        self.alibi = Alibi(spec.heads, spec.window) if is_shared else None
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
        places = self._places(ids, streams)
        for block in self.blocks.values():
            streams = block(streams, places, keys)
        for depth, predictor in enumerate(self.mtp.values()):
            streams = predictor(streams, self.embedding(labels[:, depth:-1]), places, keys)
        return streams

    def trunk(self, ids: Tensor, keys: Tensor | None = None) -> Tensor:
        """The residual stream after the last block, [b, s, h]."""
        x = ids if self.embedding is None else self._embed(ids, keys)
        places = self._places(ids, x)
        for block in self.blocks.values():
            x = block(x, places, keys)
        return x

    def _places(self, ids: Tensor, x: Tensor) -> Places:
        """What blocks are given of positions, in the type of the queries."""
        own = self.own_positions
        tokens = ids.shape[1] * (self.stream_shards if self.embedding is None else 1)
        length = tokens if own is None else len(own)
        if self.alibi is not None:
            return self.alibi(length, x, compute_dtype(x))
        return self.rope(length, compute_dtype(x), own) if self.rope is not None else None

    def _embed(self, ids: Tensor, keys: Tensor | None) -> Tensor:
        assert self.embedding is not None
        x = self.embedding(ids)
        if self.positions is not None:
            places = torch.arange(ids.shape[1], device=ids.device) if self.own_positions is None else self.own_positions
            x = x + self.positions(places)
        if self.sinusoids is not None:
            x = x * math.sqrt(self.spec.hidden) + self.sinusoids(ids.shape[1], x.dtype, self.own_positions)
        return self.dropout(x, keys)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal(0, 0.02) matrices, residual projections / sqrt(2 L), zero biases, unit norms. Where sines are added to
        the embedding matrices are Normal(0, 1 / sqrt(h)): the scaled embedding, and what blocks add to the stream, are
        then as large as they."""
        std = INIT_STD if self.sinusoids is None else self.spec.hidden**-0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
                continue
            residual = name.endswith((".wo.weight", ".down.weight", ".experts.down"))
            nn.init.normal_(parameter, std=std / math.sqrt(2 * self.spec.layers) if residual else std)
        for table in (self.rope, self.sinusoids):
            if table is not None:
                table.reset_parameters()
        for mixture in mixtures(self):
            mixture.reset_buffers()
