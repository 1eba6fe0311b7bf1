"""The head's cross-entropy, plain and chunked. Both take hidden states: logits live no longer than they must."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from suite.spec import LOSS_CHUNKS, LossKernel
from suite.tasks.base import IGNORED

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
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, goal in zip(hidden.chunk(LOSS_CHUNKS, dim=1), labels.chunk(LOSS_CHUNKS, dim=1), strict=True):
        slice_loss = checkpoint(_summed, head, part, goal, cross_entropy, use_reentrant=False, preserve_rng_state=False)
        total = total + slice_loss
    return total / labels.numel()


def _summed(head: Head, hidden: Tensor, labels: Tensor, cross_entropy: CrossEntropy) -> Tensor:
    return cross_entropy(head(hidden).float().flatten(0, 1), labels.flatten(), reduction="sum")


LOSSES: dict[LossKernel, Callable[..., Tensor]] = {
    LossKernel.PLAIN: plain_cross_entropy,
    LossKernel.CHUNKED: chunked_cross_entropy,
}


def answered_loss(
    kernel: LossKernel, head: Head, hidden: Tensor, labels: Tensor, label_smoothing: float = 0.0, weight: float = 1.0
) -> Tensor:
    """Mean cross-entropy over the labels that are not IGNORED, in nats, times `weight`; 0 where none is asked.
    hidden [b, s, h], labels [b, s]."""
    answers = (labels != IGNORED).sum().clamp(min=1)
    summed = partial(F.cross_entropy, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum")
    total = LOSSES[kernel](head, hidden, labels, summed)
    if kernel is LossKernel.CHUNKED:
        total = total * labels.numel()  # of which it made a mean
    return total * (weight / answers)
