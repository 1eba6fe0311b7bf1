"""Sinusoidal positions (arXiv:1706.03762, section 3.5): sines and cosines of falling frequencies, not learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sinusoids(places: Tensor, width: int) -> Tensor:
    """PE(p, 2i) = sin(p / 10000^(2i / h)), PE(p, 2i + 1) = the cosine of the same: [..., h] in fp32 for places [...].
    Angles are made in fp64: of a far place fp32 would keep few digits."""
    pairs = torch.arange(0, width, 2, dtype=torch.float64, device=places.device)
    angles = places.double().unsqueeze(-1) / 10000 ** (pairs / width)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :width].float()


class Sinusoids(nn.Module):
    """The table of every position, [max_positions, h] in fp32: a buffer."""

    def __init__(self, max_positions: int, width: int) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", sinusoids(torch.arange(max_positions), width), persistent=False)
        #: which of how many equal parts of the rank's tokens are asked for (sequence parallelism sets it)
        self.part = (0, 1)

    def reset_parameters(self) -> None:
        """Fill the table in again: a module that was built on the meta device has none."""
        self.table.copy_(sinusoids(torch.arange(len(self.table), device=self.table.device), self.table.shape[1]))

    def forward(self, seq_len: int, dtype: torch.dtype, positions: Tensor | None = None) -> Tensor:
        """Rows of the first `seq_len` positions, or of `positions` [..., s]: [..., s, h] in the stream's type."""
        part, parts = self.part
        if positions is not None:
            return self.table[positions.chunk(parts, dim=-1)[part]].to(dtype)
        own = seq_len // parts
        return self.table[part * own : (part + 1) * own].to(dtype)
