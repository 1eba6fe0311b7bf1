"""Attention with linear biases (ALiBi, arXiv:2108.12409): what is further away scores less, by a slope a head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from suite.models.sight import may_see


def slopes(heads: int) -> tuple[float, ...]:
    """Of every head (arXiv:2108.12409, section 3): for a power of two n, 2^(-8/n), 2^(-16/n), ... 2^-8; for another
    number those of the power of two below it, then every other one of the power above it, the first included."""
    below = 2 ** int(math.log2(heads))
    whole = [2 ** (-8 * place / below) for place in range(1, below + 1)]
    between = [2 ** (-8 * place / (2 * below)) for place in range(1, 2 * below, 2)]
    return tuple((whole + between)[:heads])


class Alibi(nn.Module):
    """What is added to scores, once for all blocks of a pass: it has no weights."""

    def __init__(self, heads: int, window: int | None = None) -> None:
        super().__init__()
        self.slopes = slopes(heads)
        self.window = window
        #: which of how many equal parts of the heads this rank has (tensor parallelism sets it)
        self.part = (0, 1)

    def forward(self, seq_len: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """-slope x distance where a query may read, else -inf: [a, s, s] on `like`'s device. Computed in fp32 and
        rounded once, a head at a time, so that nothing else of its size is needed."""
        places = torch.arange(seq_len, dtype=torch.float32, device=like.device)
        behind = places - places.unsqueeze(-1)
        behind.masked_fill_(may_see(places, places, self.window).logical_not_(), float("-inf"))
        part, parts = self.part
        count = len(self.slopes) // parts
        bias = torch.empty((count, seq_len, seq_len), dtype=dtype, device=like.device)
        for head, slope in zip(bias, self.slopes[part * count :], strict=False):
            head.copy_(behind * slope)
        return bias
