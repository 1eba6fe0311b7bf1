"""BERT as an nn.Module: what its ledger describes, operator by operator."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.models.base import IGNORED
from suite.models.bert import BertSpec
from suite.models.blocks import compute_dtype
from suite.models.dropout import SequenceDropout
from suite.models.loss import SUMS, answered
from suite.models.padded_attention import PADDED_CORES, padding_bias
from suite.parse import require
from suite.spec import AttentionKernel, LossKernel

INIT_STD = 0.02  # arXiv:1810.04805's released code: every matrix, whatever the depth


class BertEmbedding(nn.Module):
    """Word, position and segment vectors, summed and normed."""

    def __init__(self, spec: BertSpec) -> None:
        super().__init__()
        self.word = nn.Embedding(spec.vocab, spec.hidden)
        self.positions = nn.Embedding(spec.max_positions, spec.hidden)
        self.segments = nn.Embedding(spec.segments, spec.hidden)
        self.norm = nn.LayerNorm(spec.hidden, eps=spec.norm_eps)
        self.dropout = SequenceDropout(spec.dropout, site=0)

    def forward(self, ids: Tensor, segments: Tensor, keys: Tensor | None) -> Tensor:
        """ids and segments [b, s] -> [b, s, h]."""
        x = self.word(ids)
        x = x + self.positions(torch.arange(ids.shape[1], device=ids.device))
        x = x + self.segments(segments)
        return self.dropout(self.norm(x), keys)


class BertAttention(nn.Module):
    """Self-attention in both directions, with biases."""

    def __init__(self, spec: BertSpec, kernel: AttentionKernel) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(spec.hidden, spec.hidden) for _ in range(4))
        self.core = PADDED_CORES[kernel]()

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [b, s, h], bias [b, 1, 1, s] -> [b, s, h]."""
        shape = (*x.shape[:2], -1, self.head_dim)
        out = self.core(self.wq(x).view(shape), self.wk(x).view(shape), self.wv(x).view(shape), bias)
        return self.wo(out.flatten(2))


class ErfGeluMLP(nn.Module):
    """down(gelu(up(x))), exact form."""

    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, ffn)
        self.down = nn.Linear(ffn, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x [b, s, h] -> [b, s, h]."""
        return self.down(F.gelu(self.up(x)))


class BertBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)); what is added may be dropped out."""

    def __init__(self, spec: BertSpec, kernel: AttentionKernel, site: int) -> None:
        super().__init__()
        self.attention = BertAttention(spec, kernel)
        self.attention_dropout = SequenceDropout(spec.dropout, site)
        self.attention_norm = nn.LayerNorm(spec.hidden, eps=spec.norm_eps)
        self.mlp = ErfGeluMLP(spec.hidden, spec.ffn)
        self.mlp_dropout = SequenceDropout(spec.dropout, site + 1)
        self.mlp_norm = nn.LayerNorm(spec.hidden, eps=spec.norm_eps)

    def forward(self, x: Tensor, bias: Tensor, keys: Tensor | None = None) -> Tensor:
        """x [b, s, h], bias [b, 1, 1, s] -> [b, s, h]."""
        x = self.attention_norm(x + self.attention_dropout(self.attention(x, bias), keys))
        return self.mlp_norm(x + self.mlp_dropout(self.mlp(x), keys))


class BertAnswers(NamedTuple):
    """What the model says without labels."""

    tokens: Tensor
    """[b, s, V]: of every token"""
    next_sentence: Tensor
    """[b, 2]: 0 the second text follows the first, 1 it does not"""


class Bert(nn.Module):
    """BERT with its pretraining heads (arXiv:1810.04805, section 3.1)."""

    def __init__(
        self,
        spec: BertSpec,
        kernel: AttentionKernel = AttentionKernel.FLASH,
        loss: LossKernel = LossKernel.PLAIN,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.loss = SUMS[loss]
        #: of so many equal parts of this rank's tokens the stream holds one (no more than one: suite/case_rules.py)
        self.stream_shards = 1
        self.embedding = BertEmbedding(spec)
        self.blocks = nn.ModuleDict(
            {str(index): BertBlock(spec, kernel, 2 * index + 1) for index in range(spec.layers)}
        )
        self.pooler = nn.Linear(spec.hidden, spec.hidden)
        self.next_sentence = nn.Linear(spec.hidden, 2)
        self.transform = nn.Linear(spec.hidden, spec.hidden)
        self.norm = nn.LayerNorm(spec.hidden, eps=spec.norm_eps)
        self.head = nn.Linear(spec.hidden, spec.vocab)
        self.head.weight = self.embedding.word.weight

    def forward(
        self,
        ids: Tensor,
        labels: Tensor | None = None,
        keys: Tensor | None = None,
        *,
        segments: Tensor,
        lengths: Tensor,
        next_labels: Tensor | None = None,
        weight: float = 1.0,
    ) -> Tensor | BertAnswers:
        """ids, labels and segments [b, s]; lengths [b]: tokens before the padding; next_labels [b]: 0 where the second
        text follows the first, 1 where not; keys [b]: one random key a sequence, without which nothing is dropped out.

        With labels the loss: the mean cross-entropy of the labels that count, times weight, plus that of the pairs; 0
        for what has none. A sequence of padding alone has no pair. Without labels BertAnswers. SpecError for labels of
        another shape than the ids.
        """
        _check_shapes(ids, segments, lengths, labels, next_labels)
        x = self.trunk(ids, segments, lengths, keys)
        pairs = self.next_sentence(torch.tanh(self.pooler(x[:, 0])))
        if labels is None or next_labels is None:
            return BertAnswers(self.head(self._transformed(x)), pairs)
        pairs = _pair_loss(pairs, next_labels.masked_fill(lengths == 0, IGNORED))
        x = self._transformed(x)
        return self.loss(self.head, x, labels) * (weight / answered(labels)) + pairs

    def trunk(self, ids: Tensor, segments: Tensor, lengths: Tensor, keys: Tensor | None = None) -> Tensor:
        """The stream after the last block, [b, s, h]."""
        x = self.embedding(ids, segments, keys)
        bias = padding_bias(lengths, ids.shape[1], compute_dtype(x))
        for block in self.blocks.values():
            x = block(x, bias, keys)
        return x

    def _transformed(self, x: Tensor) -> Tensor:
        return self.norm(F.gelu(self.transform(x)))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal(0, 0.02) matrices, zero biases, unit norms."""
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=INIT_STD)
            else:
                parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)


def _pair_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the pairs that count; logits [b, 2], labels [b]."""
    return F.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=IGNORED) / answered(labels)


def _check_shapes(
    ids: Tensor, segments: Tensor, lengths: Tensor, labels: Tensor | None, next_labels: Tensor | None
) -> None:
    """SpecError for tensors of another shape than the ids ask for."""
    rows = ids.shape[:1]
    wanted = {
        "labels": (labels, ids.shape), "segments": (segments, ids.shape), "lengths": (lengths, rows),
        "next_labels": (next_labels, rows),
    }  # fmt: skip
    for name, (tensor, shape) in wanted.items():
        require(
            tensor is None or tensor.shape == shape,
            f"{name}: {'' if tensor is None else tuple(tensor.shape)} with ids {tuple(ids.shape)};"
            f" expected {tuple(shape)}",
        )
