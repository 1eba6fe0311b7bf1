"""How a lane's numbers are held: entries [b, entries, heads, width] that are written once and read as they were."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

#: some entries of every sequence: a range, or their numbers
Entries = slice | Tensor
#: some entries, each of a sequence of its own: (sequences [n], entries [n])
Pairs = tuple[Tensor, Tensor]


def index_of(at: Entries | Pairs) -> tuple[slice | Tensor, slice | Tensor]:
    """Which elements of an array [sequences, entries, ...] those are."""
    return at if isinstance(at, tuple) else (slice(None), at)


class Store(Protocol):
    """Entries of one lane, for every sequence alike."""

    def write(self, at: Entries | Pairs, x: Tensor) -> None:
        """Put x [b, n, heads, width] at those entries; [n, heads, width] at pairs, none of them twice."""
        ...

    def read(self, at: Entries) -> Tensor:
        """Those entries in the compute type, [b, n, heads, width]."""
        ...

    def append(self, x: Tensor) -> None:
        """Make room for x [b, n, heads, width] behind the last entry, and put it there."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Let sequence i hold what sequence rows[i] does."""
        ...

    @property
    def payload(self) -> Tensor:
        """What holds the numbers, or their codes."""
        ...

    @property
    def scales(self) -> tuple[Tensor, ...]:
        """What turns codes back into numbers; empty where they are numbers."""
        ...


def saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as far as the type reaches, else its largest: some casts to fp8 make nan of what is beyond 448."""
    limit = torch.finfo(dtype).max
    # in fp32, since bf16 rounds fp16's 65504 to a number beyond it
    return x.float().clamp(-limit, limit) if limit < torch.finfo(x.dtype).max else x


class PlainStore:
    """Numbers in the type that they are given; beyond its range, its largest."""

    def __init__(
        self, sequences: int, entries: int, heads: int, width: int, dtype: torch.dtype, compute: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        self._numbers = torch.empty(sequences, entries, heads, width, dtype=dtype, device=device)
        self._compute = compute

    def write(self, at: Entries | Pairs, x: Tensor) -> None:
        """Put x at those entries, rounded to the store's type."""
        self._numbers[index_of(at)] = self._rounded(x)

    def read(self, at: Entries) -> Tensor:
        """Those entries: a view of them where they are a range and need no cast."""
        return self._numbers[:, at].to(self._compute)

    def append(self, x: Tensor) -> None:
        """Copy what is there and x into a new array."""
        self._numbers = torch.cat((self._numbers, self._rounded(x)), dim=1)

    def reorder(self, rows: Tensor) -> None:
        """Let sequence i hold what sequence rows[i] does."""
        self._numbers = self._numbers[rows]

    @property
    def payload(self) -> Tensor:
        """The numbers."""
        return self._numbers

    @property
    def scales(self) -> tuple[Tensor, ...]:
        """None."""
        return ()

    def _rounded(self, x: Tensor) -> Tensor:
        return saturated(x, self._numbers.dtype).to(self._numbers.dtype)
