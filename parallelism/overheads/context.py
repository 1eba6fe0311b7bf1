"""Probes of context parallelism: a block's attention core at a case's own shape, its ranks talking meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from parallelism.context.ring import ring_attention
from parallelism.context.ulysses import ulysses_attention
from suite.hardware.collective_times_worker import own_group
from suite.layout import ContextMethod
from suite.models.blocks import CORES
from suite.spec import AttentionKernel

Call = Callable[[], object]


def calls(
    method: str, kernel: str, balanced: bool, ranks: int, shape: tuple[int, int, int, int, int]
) -> dict[str, Call]:
    """The core's forward pass, and with its backward pass. `shape`: sequences, tokens of a rank, heads, key-value
    heads, width."""
    group = own_group(ranks)
    sequences, tokens, heads, kv_heads, width = shape
    q, k, v = (
        torch.randn(sequences, tokens, count, width, requires_grad=True) for count in (heads, kv_heads, kv_heads)
    )
    attention = AttentionKernel(kernel)
    core = CORES[attention]()

    def forward() -> Tensor:
        if method == ContextMethod.RING:
            heads_first = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            return ring_attention(*heads_first, group, True, balanced, attention).transpose(1, 2)
        return ulysses_attention(q, k, v, group, lambda q, k, v: core(q, k, v, None))

    gradient = torch.randn(sequences, tokens, heads, width)
    return {"forward": forward, "whole": lambda: torch.autograd.grad(forward(), (q, k, v), gradient)}
