"""Routing: which experts each token goes to, with what weights, and where its rows then lie. Single-device code.

Scores are in fp32 whatever the model's type, as in Switch Transformer (arXiv:2101.03961, section 2.4) and in
transformers' DeepSeek models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.models.experts import Balance, Dispatch, Experts, Scoring

#: added to a sum of scores that is divided by, which sigmoids may leave at zero
TINY = 1e-20


#: of n tokens: experts [n, k], weights [n, k] in fp32, and the mean over sequences of their balance loss, times the
#: rate (None: it has none). A tuple, which engines' hooks around modules look through.
Routing = tuple[Tensor, Tensor, Tensor | None]


class Router(nn.Module):
    """Scores every expert for a token and chooses top_k of them."""

    def __init__(self, spec: Experts, hidden: int) -> None:
        super().__init__()
        self.spec = spec
        self.bias: Tensor | None
        self.weight = nn.Parameter(torch.empty(spec.count, hidden))
        has_bias = spec.balance is Balance.BIAS
        self.register_buffer("bias", torch.zeros(spec.count) if has_bias else None)

    def reset_buffers(self) -> None:
        """A module that was built on the meta device has none."""
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, tokens: Tensor, sequences: int) -> Routing:
        """tokens [n, h], those of each of `sequences` equal parts one after the other."""
        scores = self._scores(tokens)
        with torch.no_grad():
            experts = chosen(scores if self.bias is None else scores + self.bias, self.spec)
        auxiliary = None
        if self.spec.balance is Balance.AUXILIARY and torch.is_grad_enabled():
            auxiliary = balance_loss(scores, experts, sequences, self.spec)
        return experts, self._weights(scores, experts), auxiliary

    def _scores(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, enabled=False):
            logits = F.linear(tokens.float(), self.weight.float())
        return logits.softmax(dim=-1) if self.spec.scoring is Scoring.SOFTMAX else logits.sigmoid()

    def _weights(self, scores: Tensor, experts: Tensor) -> Tensor:
        weights = scores.gather(1, experts)
        if self.spec.normalized:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + TINY)
        return weights if self.spec.scale == 1 else weights * self.spec.scale


def chosen(scores: Tensor, spec: Experts) -> Tensor:
    """Of scores [n, E] the top_k experts of each token, [n, k]; with groups, from its best top_groups groups.

    Source: arXiv:2405.04434, section 2.2.2 (a group's best expert); arXiv:2412.19437, section 2.1.2 (its best two).
    """
    if spec.groups > 1:
        apart = scores.unflatten(1, (spec.groups, -1))
        best = min(1 if spec.scoring is Scoring.SOFTMAX else 2, apart.shape[-1])
        groups = apart.topk(best, dim=-1).values.sum(dim=-1).topk(spec.top_groups, dim=-1).indices
        closed = torch.ones(len(scores), spec.groups, dtype=torch.bool, device=scores.device)
        closed.scatter_(1, groups, False)
        scores = apart.masked_fill(closed.unsqueeze(-1), float("-inf")).flatten(1)
    return scores.topk(spec.top_k, dim=-1).indices


def balance_loss(scores: Tensor, experts: Tensor, sequences: int, spec: Experts) -> Tensor:
    """rate x the mean over sequences of sum_i f_i P_i: f_i is count / (top_k s) times how many of a sequence's s tokens
    chose expert i, P_i the mean over them of its share of the token's scores.

    Source: arXiv:2405.04434, equations 23 to 25; arXiv:2412.19437, equations 17 to 20, whose shares are normalized.
    """
    chose = loads(experts, sequences, spec.count).float()
    often = chose * (spec.count / (experts.numel() / sequences))
    shares = scores if spec.scoring is Scoring.SOFTMAX else scores / (scores.sum(dim=-1, keepdim=True) + TINY)
    mean = shares.unflatten(0, (sequences, -1)).mean(dim=1)
    return (often * mean).sum() * (spec.rate / sequences)


def loads(experts: Tensor, sequences: int, count: int) -> Tensor:
    """How many of each sequence's tokens chose each expert, [sequences, count], of experts [n, k]."""
    rows = experts.reshape(sequences, -1)
    found = torch.zeros(sequences, count, dtype=torch.int64, device=experts.device)
    return found.scatter_add_(1, rows, torch.ones_like(rows[:1, :1]).expand_as(rows))


@dataclass(frozen=True)
class Places:
    """The rows that experts compute, sorted by expert."""

    tokens: Tensor
    """[R]: whose rows they are"""
    choices: Tensor
    """[R]: places in the flattened [n, k]"""
    counts: Tensor
    """[E]: rows of each expert"""
    load: Tensor
    """[E]: tokens that chose it; with capacity some have no row"""
    filled: Tensor | None = None
    """[R], with capacity: is the place taken? An empty one computes token 0's row, which then counts nothing"""


def places_of(experts: Tensor, sequences: int, spec: Experts) -> Places:
    """Where the rows of n tokens lie, whose experts are [n, k]."""
    if spec.dispatch is Dispatch.CAPACITY:
        return _within_capacity(experts, sequences, spec)
    order = experts.flatten().argsort(stable=True)
    load = loads(experts, 1, spec.count).squeeze(0)
    return Places(order // spec.top_k, order, load, load)


def _within_capacity(experts: Tensor, sequences: int, spec: Experts) -> Places:
    """An expert takes so many of each sequence's tokens, in their order (a group is a sequence: arXiv:2006.16668,
    section 2.2); all places are computed, empty ones too."""
    room = spec.capacity(len(experts) // sequences)
    flat = experts.flatten()
    sequence = torch.arange(sequences, device=flat.device).repeat_interleave(len(flat) // sequences)
    queue, order = (flat * sequences + sequence).sort(stable=True)
    first = torch.searchsorted(queue, torch.arange(spec.count * sequences, device=flat.device))
    place = torch.arange(len(flat), device=flat.device) - first[queue]
    total = spec.count * sequences * room
    slot = torch.where(place < room, queue * room + place, total)  # the last is for what is dropped
    choices = torch.full((total + 1,), -1, device=flat.device).scatter_(0, slot, order)[:-1]
    filled = choices >= 0
    choices = choices.clamp_(min=0)
    counts = torch.full((spec.count,), sequences * room, device=flat.device)
    return Places(choices // spec.top_k, choices, counts, loads(experts, 1, spec.count).squeeze(0), filled)
