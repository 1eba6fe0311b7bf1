"""Batch normalisation (arXiv:1502.03167) of a text's tokens: over all of a micro-batch's, those to come included."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOMENTUM = 0.1  # of the running statistics, as in torch


class TokenBatchNorm(nn.Module):
    """Each channel normalised by its mean and variance over the micro-batch's b x s tokens; out of training, by the
    running ones. So in training a token's output depends on later tokens and on other sequences."""

    def __init__(self, width: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [b, s, h] -> [b, s, h]."""
        rows = x.flatten(0, 1)
        return F.batch_norm(
            rows, self.mean, self.variance, self.weight, self.bias, self.training, MOMENTUM, self.eps
        ).view_as(x)  # fmt: skip
