"""Encoder-decoders as nn.Modules: what their ledger describes, operator by operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from suite.models.blocks import compute_dtype
from suite.models.encoder_decoder import EncoderDecoderSpec
from suite.models.encoder_decoder_blocks import PostNormBlock, PreNormBlock
from suite.models.loss import answered_loss
from suite.models.masked_attention import causal_mask
from suite.models.padded_attention import padding_bias
from suite.models.relative_bias import RelativeBias
from suite.models.sinusoidal import Sinusoids
from suite.models.t5 import T5Spec
from suite.models.transformer import TransformerSpec
from suite.parse import require
from suite.spec import AttentionKernel, LossKernel


class EncoderDecoder(nn.Module):
    """What both families do. With labels it returns the mean loss in nats a token, else logits [b, t, V].

    `blocks` are the encoder's, then the decoder's, in the order in which they run. A family registers what comes before
    them, them, and what comes after, the head last.
    """

    blocks: nn.ModuleDict
    head: nn.Linear

    def __init__(self, spec: EncoderDecoderSpec, kernel: AttentionKernel, loss: LossKernel) -> None:
        super().__init__()
        self.spec = spec
        self.kernel = kernel
        self.loss = loss
        self.label_smoothing = 0.0
        self.embedding = nn.Embedding(spec.vocab, spec.hidden)

    def new_head(self) -> nn.Linear:
        """The head, tied or not."""
        head = nn.Linear(self.spec.hidden, self.spec.vocab, bias=False)
        if self.spec.tied:
            head.weight = self.embedding.weight
        return head

    @property
    def encoder(self) -> list[nn.Module]:
        """The encoder's blocks."""
        return list(self.blocks.values())[: self.spec.encoder_layers]

    @property
    def decoder(self) -> list[nn.Module]:
        """The decoder's blocks."""
        return list(self.blocks.values())[self.spec.encoder_layers :]

    def forward(
        self,
        ids: Tensor,
        labels: Tensor | None = None,
        keys: Tensor | None = None,
        decoder_ids: Tensor | None = None,
        source_lengths: Tensor | None = None,
        weight: float = 1.0,
    ) -> Tensor:
        """ids [b, s], the source, and decoder_ids [b, t], the target one place on, -> logits [b, t, V]; with labels
        [b, t], IGNORED where nothing is asked, the mean cross-entropy of the others, times `weight`. source_lengths
        [b]: tokens of each source, what follows being padding; without them there is none. SpecError for labels that
        are no target's."""
        require(decoder_ids is not None, "decoder_ids: missing; give the target, one place on")
        assert decoder_ids is not None
        if labels is not None:
            wanted, given = tuple(decoder_ids.shape), tuple(labels.shape)
            require(wanted == given, f"labels: shape {given} is not that of decoder_ids, {wanted}; give one a token")
        hidden = self.decode(decoder_ids, *self.encode(ids, source_lengths))
        hidden = self.finish(hidden)
        if labels is None:
            return self.head(hidden)
        return answered_loss(self.loss, self.head, hidden, labels, self.label_smoothing, weight)

    def encode(self, ids: Tensor, source_lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the decoder reads of a source, [b, s, h], and the mask of its padding."""
        raise NotImplementedError

    def decode(self, ids: Tensor, memory: Tensor, memory_mask: Tensor | None, past: int = 0) -> Tensor:
        """The stream after the decoder's last block, [b, t, h]. `past`: tokens before a single one of ids, where a
        cache has their keys and values."""
        raise NotImplementedError

    def finish(self, hidden: Tensor) -> Tensor:
        """What the head reads."""
        return hidden


class Transformer(EncoderDecoder):
    """Vaswani et al.'s: sinusoids added to scaled embeddings, post-norm blocks, no norm after a stack."""

    def __init__(
        self,
        spec: TransformerSpec,
        kernel: AttentionKernel = AttentionKernel.FLASH,
        loss: LossKernel = LossKernel.PLAIN,
    ) -> None:
        super().__init__(spec, kernel, loss)
        self.label_smoothing = spec.label_smoothing
        self.positions = Sinusoids(spec.max_positions, spec.hidden)
        blocks = (PostNormBlock(spec, kernel, index >= spec.encoder_layers) for index in range(spec.layers))
        self.blocks = nn.ModuleDict({str(index): block for index, block in enumerate(blocks)})
        self.head = self.new_head()

    def encode(self, ids: Tensor, source_lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As the base class says."""
        x = self.embed(ids)
        mask = None if source_lengths is None else padding_bias(source_lengths, ids.shape[1], compute_dtype(x))
        for block in self.encoder:
            x = block(x, mask)
        return x, mask

    def decode(self, ids: Tensor, memory: Tensor, memory_mask: Tensor | None, past: int = 0) -> Tensor:
        """As the base class says."""
        x = self.embed(ids, past)
        is_open = self.kernel is AttentionKernel.EAGER
        mask = causal_mask(ids.shape[1], compute_dtype(x), ids.device) if is_open else None
        for block in self.decoder:
            x = block(x, mask, memory, memory_mask)
        return x

    def embed(self, ids: Tensor, past: int = 0) -> Tensor:
        """Rows of the embedding times sqrt(h), and the places' sinusoids (section 3.4 and 3.5)."""
        x = self.embedding(ids) * math.sqrt(self.spec.hidden)
        places = torch.arange(past, past + ids.shape[1], device=ids.device) if past else None
        return x + self.positions(ids.shape[1], x.dtype, places)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Glorot's uniform matrices, Normal(0, h^-0.5) embedding, zero biases, unit norms."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            elif name in ("embedding.weight", "head.weight"):
                nn.init.normal_(parameter, std=self.spec.hidden**-0.5)
            else:
                nn.init.xavier_uniform_(parameter)
        self.positions.reset_parameters()


class T5(EncoderDecoder):
    """Raffel et al.'s: relative positions in self-attention alone, pre-norm blocks, a norm after each stack."""

    def __init__(
        self, spec: T5Spec, kernel: AttentionKernel = AttentionKernel.FLASH, loss: LossKernel = LossKernel.PLAIN
    ) -> None:
        super().__init__(spec, kernel, loss)
        self.t5 = spec
        self.encoder_bias = RelativeBias(spec.heads, spec.buckets, spec.max_distance, is_causal=False)
        blocks = (PreNormBlock(spec, kernel, index >= spec.encoder_layers) for index in range(spec.layers))
        self.blocks = nn.ModuleDict({str(index): block for index, block in enumerate(blocks)})
        self.encoder_norm = nn.RMSNorm(spec.hidden, eps=spec.norm_eps)
        self.decoder_bias = RelativeBias(spec.heads, spec.buckets, spec.max_distance, is_causal=True)
        self.norm = nn.RMSNorm(spec.hidden, eps=spec.norm_eps)
        self.head = self.new_head()

    def encode(self, ids: Tensor, source_lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As the base class says."""
        x = self.embedding(ids)
        bias = self.encoder_bias(ids.shape[1], compute_dtype(x))
        padding = None if source_lengths is None else padding_bias(source_lengths, ids.shape[1], bias.dtype)
        if padding is not None:
            bias = bias + padding
        for block in self.encoder:
            x = block(x, bias)
        return self.encoder_norm(x), padding

    def decode(self, ids: Tensor, memory: Tensor, memory_mask: Tensor | None, past: int = 0) -> Tensor:
        """As the base class says."""
        x = self.embedding(ids)
        kind = compute_dtype(x)
        bias = self.decoder_bias.row(past, kind) if past else self.decoder_bias(ids.shape[1], kind)
        for block in self.decoder:
            x = block(x, bias, memory, memory_mask)
        return x

    def finish(self, hidden: Tensor) -> Tensor:
        """Normalised, and scaled before a tied head."""
        hidden = self.norm(hidden)
        return hidden * self.spec.head_scale if self.spec.tied else hidden

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published code's (factor 1): embedding Normal(0, 1), projections by what they read, queries by
        sqrt(h d) for the scores that nothing divides; unit norms."""
        spec = self.t5
        inner = spec.q_dim
        stds = {"wq": (spec.hidden * spec.head_dim) ** -0.5, "wo": inner**-0.5, "down": spec.ffn**-0.5,
                "embedding": 1.0, "head": 1.0}  # fmt: skip
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0)
            else:
                nn.init.normal_(parameter, std=stds.get(name.split(".")[-2], spec.hidden**-0.5))
