"""T5's relative-position bias: a number a head and bucket of distances, shared by a stack (arXiv:1910.10683, 2.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def bucket_of(distances: Tensor, buckets: int, max_distance: int, is_causal: bool) -> Tensor:
    """The bucket of each distance, key's place less query's. Half of them (for a decoder, of those before the query;
    for an encoder, of each side's) are exact, the others widen as logarithms to max_distance and hold all beyond."""
    side = buckets if is_causal else buckets // 2
    first = 0 if is_causal else (distances > 0).long() * side
    far = (-distances).clamp(min=0) if is_causal else distances.abs()
    exact = side // 2
    # the shape of transformers' and the paper's code: fp32 logarithms, rounded down
    widened = torch.log(far.float().clamp(min=1) / exact) / math.log(max_distance / exact) * (side - exact)
    return first + torch.where(far < exact, far, (exact + widened.long()).clamp(max=side - 1))


class RelativeBias(nn.Module):
    """The bias of one stack. It depends on the distance alone, so one row of all distances is looked up, and every
    query's row is a part of it: no [s, s] indices are kept."""

    def __init__(self, heads: int, buckets: int, max_distance: int, is_causal: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(buckets, heads)
        self.max_distance = max_distance
        self.is_causal = is_causal

    def forward(self, seq_len: int, dtype: torch.dtype) -> Tensor:
        """What is added to scores of queries and keys at places 0, 1, ..., [a, s, s]; for a decoder the type's lowest
        number where a key comes after its query."""
        device = self.table.weight.device
        distances = torch.arange(1 - seq_len, seq_len, device=device)
        values = self._of(distances, dtype)
        return values.t().unfold(1, seq_len, 1).flip(1).to(dtype)

    def row(self, place: int, dtype: torch.dtype) -> Tensor:
        """The last row alone, of the query at `place`, [a, 1, place + 1]."""
        device = self.table.weight.device
        return self._of(torch.arange(-place, 1, device=device), dtype).t().unsqueeze(1).to(dtype)

    def _of(self, distances: Tensor, dtype: torch.dtype) -> Tensor:
        """The values of these distances, [n, a] in fp32."""
        buckets = bucket_of(distances, self.table.num_embeddings, self.max_distance, self.is_causal)
        values = self.table(buckets).float()
        if self.is_causal:
            values = values.masked_fill((distances > 0).unsqueeze(1), torch.finfo(dtype).min)
        return values
