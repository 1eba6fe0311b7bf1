"""The head's cross-entropy, plain and chunked. Both take hidden states: logits live no longer than they must."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from suite.models.base import IGNORED
from suite.spec import LOSS_CHUNKS, LossKernel

Head = Callable[[Tensor], Tensor]
#: of logits [n, V] and labels [n], with the reduction as a keyword: torch's, or one over divided logits
CrossEntropy = Callable[..., Tensor]


def plain_cross_entropy(
    head: Head, hidden: Tensor, labels: Tensor, cross_entropy: CrossEntropy = F.cross_entropy
) -> Tensor:
    """Mean cross-entropy in nats a token; hidden [b, s, h], labels [b, s]. Logits in fp32, all at once."""
    return cross_entropy(head(hidden).float().flatten(0, 1), labels.flatten())


def chunked_cross_entropy(
    head: Head, hidden: Tensor, labels: Tensor, cross_entropy: CrossEntropy = F.cross_entropy
) -> Tensor:
    """The same figure a slice of the sequence at a time: each slice's logits are recomputed in the backward pass."""
    return chunked_sum(head, hidden, labels, cross_entropy) / labels.numel()


def plain_sum(head: Head, hidden: Tensor, labels: Tensor, cross_entropy: CrossEntropy = F.cross_entropy) -> Tensor:
    """Cross-entropy summed over the labels that count, in nats; hidden [b, s, h], labels [b, s]."""
    return _summed(head, hidden, labels, cross_entropy)


def chunked_sum(head: Head, hidden: Tensor, labels: Tensor, cross_entropy: CrossEntropy = F.cross_entropy) -> Tensor:
    """The same a slice of the sequence at a time."""
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, goal in zip(hidden.chunk(LOSS_CHUNKS, dim=1), labels.chunk(LOSS_CHUNKS, dim=1), strict=True):
        slice_loss = checkpoint(_summed, head, part, goal, cross_entropy, use_reentrant=False, preserve_rng_state=False)
        total = total + slice_loss
    return total


def answered(labels: Tensor) -> Tensor:
    """How many labels count, a scalar; 1 where none does, whose sum is 0 already."""
    return (labels != IGNORED).sum().clamp_(min=1)


def _summed(head: Head, hidden: Tensor, labels: Tensor, cross_entropy: CrossEntropy) -> Tensor:
    return cross_entropy(head(hidden).float().flatten(0, 1), labels.flatten(), reduction="sum")


LOSSES: dict[LossKernel, Callable[..., Tensor]] = {
    LossKernel.PLAIN: plain_cross_entropy,
    LossKernel.CHUNKED: chunked_cross_entropy,
}
#: of the labels that count: for tasks that ask nothing at some places
SUMS: dict[LossKernel, Callable[..., Tensor]] = {LossKernel.PLAIN: plain_sum, LossKernel.CHUNKED: chunked_sum}


def answered_loss(
    kernel: LossKernel, head: Head, hidden: Tensor, labels: Tensor, label_smoothing: float = 0.0, weight: float = 1.0
) -> Tensor:
    """Mean cross-entropy over the labels that count, in nats, times `weight`; 0 where none does. hidden [b, s, h],
    labels [b, s]."""
    summed = partial(F.cross_entropy, label_smoothing=label_smoothing, ignore_index=IGNORED)
    total: Tensor = SUMS[kernel](head, hidden, labels, summed)
    return total * weight / answered(labels)
