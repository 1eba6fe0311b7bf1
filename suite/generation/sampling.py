"""How the next token is chosen of its logits: the likeliest, or drawn from the likeliest few."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from suite.serving import Sampling, Serving

#: logits [b, V] -> tokens [b]
Choose = Callable[[Tensor], Tensor]


def chooser(serving: Serving, generator: torch.Generator) -> Choose:
    """The case's way to choose; what it draws depends on the generator's state and on nothing else. Beams are not
    chosen token by token: suite/generation/beam.py."""
    assert serving.sampling is not Sampling.BEAM
    if serving.sampling is Sampling.GREEDY:
        return greedy

    def draw(logits: Tensor) -> Tensor:
        kept = candidates(logits / serving.temperature, serving)
        return torch.multinomial(F.softmax(kept, dim=-1), 1, generator=generator)[:, 0]

    return draw


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token of each row; of several the first in the vocabulary."""
    return logits.argmax(dim=-1)


def candidates(logits: Tensor, serving: Serving) -> Tensor:
    """Logits [b, V] with -inf for the tokens that are not drawn from."""
    if serving.sampling is Sampling.TOP_K:
        return top_k(logits, serving.top_k)
    return top_p(logits, serving.top_p)


def top_k(logits: Tensor, k: int) -> Tensor:
    """The k likeliest tokens' logits, the others -inf (arXiv:1805.04833, section 5.4). Exactly k: of tokens equally
    likely the first in the vocabulary."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return logits.scatter(-1, order[..., k:], float("-inf"))


def top_p(logits: Tensor, p: float) -> Tensor:
    """The logits of the fewest tokens whose probabilities reach p, the others -inf (arXiv:1904.09751, section 3.1):
    likeliest first, and of tokens equally likely the first in the vocabulary. All of them at p = 1."""
    if p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    likely = F.softmax(ordered, dim=-1)
    before = likely.cumsum(dim=-1) - likely
    return torch.full_like(logits, float("-inf")).scatter(-1, order, ordered.masked_fill(before >= p, float("-inf")))
