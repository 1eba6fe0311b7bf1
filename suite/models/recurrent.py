"""The recurrent family's specification: language models of LSTM or GRU layers, baselines beside the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from suite.models.base import ModelSpec
from suite.models.decoder import MAX_LAYERS
from suite.parse import require, setting


class Cell(StrEnum):
    """How a layer's state goes from one token to the next, in torch's form of both."""

    GRU = "gru"  # arXiv:1406.1078, with the reset gate after the product (arXiv:1412.3555's cost, cuDNN's order)
    LSTM = "lstm"  # Hochreiter and Schmidhuber 1997, with a forget gate and no peepholes

    @property
    def gates(self) -> int:
        """Rows of a layer's matrices, in widths."""
        return 3 if self is Cell.GRU else 4

    @property
    def states(self) -> int:
        """Vectors that a sequence is remembered by: the output, and the LSTM's cell."""
        return 1 if self is Cell.GRU else 2


@dataclass(frozen=True)
class RecurrentSpec(ModelSpec):
    """Embedding, recurrent layers one on the other, head; after the embedding and after every layer, dropout
    (arXiv:1409.2329, section 3.1). h hidden, which the embedding's width is too, V vocab, L layers, G gates.

    Parameters: L G (h h + h h + 2 h) + V h (+ V h untied). The head has no bias.

    A token sees all before it through a state of fixed size: no attention, so one head as wide as the layer, no
    longest sequence but what an estimate is asked for.
    """

    cell: Cell = setting(Cell.LSTM, "gru or lstm")
    layers: int = setting(2, "recurrent layers")
    hidden: int = setting(128, "width of embedding, layers and state")
    vocab: int = setting(2048, "rows of the embedding")
    tied: bool = setting(False, "head shares the embedding's weight")
    dropout: float = setting(0.0, "share of the embedding's and the layers' outputs that is dropped in training")
    family: str = setting("recurrent", "model family")
    name: str = setting("custom", "what reports call it")

    heads = 1
    kv_heads = 1
    max_positions = 2**20
    has_attention = False

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "vocab"):
            size = getattr(self, name)
            require(size >= 1, f"model.{name}: must be at least 1, got {size}")
        require(self.layers <= MAX_LAYERS, f"model.layers: must be at most {MAX_LAYERS}, got {self.layers}")
        require(0 <= self.dropout < 1, f"model.dropout: must be in [0, 1), got {self.dropout}")
        require(self.family == "recurrent", f"model.family: {self.family!r} is not 'recurrent'")
        object.__setattr__(self, "head_dim", self.hidden)
        object.__setattr__(self, "ffn", self.hidden)

    def state_bytes(self, nbytes: int = 4) -> int:
        """Bytes that one sequence's past takes between two tokens, `nbytes` an element: what stands where attention
        has a KV cache, and the same however long the sequence is."""
        return self.layers * self.cell.states * self.hidden * nbytes
