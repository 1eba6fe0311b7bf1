"""What a recurrent layer's way through the tokens does on a device: one small product after the other.

A token takes a product and a handful of pointwise kernels, each after the last (suite/models/recurrent_cells.py).
Nothing of it overlaps, so launches are most of it. cuDNN's own fused layers are not modelled: they are not what runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from suite.models.recurrent import Cell
from suite.operators import DType, Kernel

#: bytes that each of a token's pointwise kernels reads and writes, in [b, h] of the layer's type, in their order
FORWARD_TOUCHES = {Cell.LSTM: (12, 2, 2, 2, 2, 3, 4, 2, 3), Cell.GRU: (6, 4, 2, 4, 2, 4)}
BACKWARD_TOUCHES = {Cell.LSTM: (3, 2, 3, 3, 3, *[3] * 8, 3), Cell.GRU: (*[3] * 9, 6, 3)}


@dataclass(frozen=True)
class Recurrence:
    """Sizes of a layer: sequences, tokens of each, what a token brings, width, rows of the gates."""

    batch: int
    tokens: int
    inputs: int
    width: int
    rows: int
    dtype: DType

    @property
    def cell(self) -> Cell:
        """Three gates are a GRU's."""
        return next(cell for cell in Cell if cell.gates * self.width == self.rows)

    @property
    def output_bytes(self) -> int:
        """Of [b, s, h]."""
        return self.tokens * self._token_bytes

    @property
    def gate_bytes(self) -> int:
        """Of [b, s, G h]."""
        return self.cell.gates * self.output_bytes

    @property
    def forward_moves(self) -> list[int]:
        """Bytes of a token's pointwise kernels."""
        return [self._token_bytes * touches for touches in FORWARD_TOUCHES[self.cell]]

    @property
    def backward_moves(self) -> list[int]:
        """The same on the way back."""
        return [self._token_bytes * touches for touches in BACKWARD_TOUCHES[self.cell]]

    @property
    def _token_bytes(self) -> int:
        return self.batch * self.width * self.dtype.nbytes


def recurrence_of(kernel: Kernel) -> Recurrence:
    """The sizes behind a ledger's recurrence."""
    batch, tokens, width = kernel.writes[0].values
    return Recurrence(
        batch, tokens, kernel.reads[0].values[-1], width, kernel.writes[1].values[-1], kernel.writes[0].dtype
    )
