"""The head's cross-entropy, plain and chunked. Both take hidden states: logits live no longer than they must."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from suite.spec import LOSS_CHUNKS, LossKernel

Head = Callable[[Tensor], Tensor]


def plain_cross_entropy(head: Head, hidden: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats a token; hidden [b, s, h], labels [b, s]. Logits in fp32, all at once."""
    return F.cross_entropy(head(hidden).float().flatten(0, 1), labels.flatten())


def chunked_cross_entropy(head: Head, hidden: Tensor, labels: Tensor) -> Tensor:
    """The same figure a slice of the sequence at a time: each slice's logits are recomputed in the backward pass."""
    total = hidden.new_zeros((), dtype=torch.float32)
    for part, goal in zip(hidden.chunk(LOSS_CHUNKS, dim=1), labels.chunk(LOSS_CHUNKS, dim=1), strict=True):
        total = total + checkpoint(_summed, head, part, goal, use_reentrant=False, preserve_rng_state=False)
    return total / labels.numel()


def _summed(head: Head, hidden: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden).float().flatten(0, 1), labels.flatten(), reduction="sum")


LOSSES: dict[LossKernel, Callable[[Head, Tensor, Tensor], Tensor]] = {
    LossKernel.PLAIN: plain_cross_entropy,
    LossKernel.CHUNKED: chunked_cross_entropy,
}
