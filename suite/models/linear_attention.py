"""Linear attention (arXiv:2006.16236): weights are products of features, phi(q) phi(k), so that the past is a sum.

The parallel form works in chunks: products within a chunk, masked, and for what is before it the state, the sum of
phi(k) [v, 1]^T so far. The recurrent form reads a token at a time and keeps that state alone. Single-device code,
written as suite/models/blocks.py is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suite.models.linear_shape import chunk_tokens
from suite.spec import AttentionKernel


def features(x: Tensor) -> Tensor:
    """phi(x) = elu(x) + 1, all positive (equation 7)."""
    return F.elu(x).add_(1.0)


def with_ones(v: Tensor) -> Tensor:
    """[v, 1]: with it a sum of weighted values carries the sum of weights."""
    return F.pad(v, (0, 1), value=1.0)


def shares(sums: Tensor) -> Tensor:
    """Weighted sums of values over sums of weights: [..., d + 1] -> [..., d]."""
    values, weights = sums.split((sums.shape[-1] - 1, 1), dim=-1)
    return values / weights


def chunked(x: Tensor, chunk: int) -> Tensor:
    """[b, s, a, d] as [b, a, s / C, C, d], a view."""
    batch, seq_len, heads, width = x.shape
    return x.view(batch, seq_len // chunk, chunk, heads, width).permute(0, 3, 1, 2, 4)


def states_before(k: Tensor, v: Tensor, chunks: int) -> Tensor:
    """The state that each chunk finds, [n, d, d + 1], of chunks of features and values [n, C, ...]; sums in fp32."""
    made = torch.bmm(k.transpose(1, 2), v).unflatten(0, (-1, chunks))
    before = F.pad(made[:, :-1], (0, 0, 0, 0, 1, 0))
    return before.float().cumsum(1).to(v.dtype).flatten(0, 1)


class LinearCore(nn.Module):
    """Causal linear attention in its parallel form. q, k and v [b, s, a, d]. With the flash kernel in chunks of about
    64 tokens, so that nothing is s x s; in the open as one chunk."""

    def __init__(self, kernel: AttentionKernel) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, q: Tensor, k: Tensor, v: Tensor, places: None) -> Tensor:
        """Autocast would round sums: products run in the projections' type, and states are summed in fp32."""
        with torch.autocast(q.device.type, enabled=False):
            return self._mixed(q, k, v)

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, seq_len, heads, width = q.shape
        chunk = chunk_tokens(seq_len, self.kernel)
        q, k = (chunked(features(x), chunk).contiguous().view(-1, chunk, width) for x in (q, k))
        v = with_ones(chunked(v, chunk)).reshape(-1, chunk, width + 1)
        sums = torch.bmm(torch.bmm(q, k.transpose(1, 2)).tril_(), v)
        if chunk < seq_len:
            sums += torch.bmm(q, states_before(k, v, seq_len // chunk))
        out = shares(sums).view(batch, heads, -1, chunk, width)
        return out.permute(0, 2, 3, 1, 4).reshape(batch, seq_len, heads, width)


class RecurrentCore(nn.Module):
    """The same as a recurrence over tokens (equations 16 to 20), whose state goes on from call to call."""

    def __init__(self) -> None:
        super().__init__()
        #: phi(k) [v, 1]^T summed over all tokens so far, [b, a, d, d + 1] in fp32; None before the first
        self.state: Tensor | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, places: None) -> Tensor:
        """q, k and v [b, s, a, d] of the next tokens -> [b, s, a, d]."""
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = features(q.float()), features(k.float()), with_ones(v.float())
            out = [self._next(*token) for token in zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True)]
        return torch.stack(out, dim=1)

    def _next(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One token: [b, a, d] each, v with its one."""
        added = k.unsqueeze(-1) * v.unsqueeze(-2)
        self.state = added if self.state is None else self.state + added
        return shares((q.unsqueeze(-2) @ self.state).squeeze(-2))


@contextmanager
def recurrent(model: nn.Module) -> Iterator[tuple[RecurrentCore, ...]]:
    """Let a model of linear attention read its tokens one after the other: within, each call goes on where the last one
    stopped. Its own cores are back afterwards."""
    attentions = [module for module in model.modules() if isinstance(getattr(module, "core", None), LinearCore)]
    own, cores = [module.core for module in attentions], tuple(RecurrentCore() for _ in attentions)
    for module, core in zip(attentions, cores, strict=True):
        module.add_module("core", core)
    try:
        yield cores
    finally:
        for module, before in zip(attentions, own, strict=True):
            module.core = before
