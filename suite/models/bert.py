"""BERT's specification: an encoder that learns masked tokens and whether one text follows another. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from suite.models.base import ModelSpec, TaskKind
from suite.models.decoder import MAX_LAYERS
from suite.parse import require, setting

#: the vocabulary's last ids, in this order: [PAD], [CLS], [SEP], [MASK]
SPECIAL_TOKENS = 4


class Masking(StrEnum):
    """What is masked together."""

    TOKENS = "tokens"  # each token by itself (arXiv:1810.04805, section 3.1)
    SPANS = "spans"  # runs of consecutive tokens, as ERNIE's phrases (arXiv:1904.09223, section 3.2.3)


@dataclass(frozen=True)
class BertSpec(ModelSpec):
    """BERT (arXiv:1810.04805, section 3): post-norm blocks with biases, erf GELU, attention in both directions.

    Parameters of the backbone: (V + P + S + 2) h + L (4 h^2 + 2 h f + 9 h + f) + h^2 + h, that is embeddings with their
    norm, blocks, pooler; with P = 512, S = 2 and f = 4 h they are (V + 516) h + L (12 h^2 + 13 h) + h^2 + h. The
    pretraining heads on top: h^2 + 3 h (transform and its norm), V (the tied decoder's bias), 2 h + 2 (next sentence).
    """

    layers: int = setting(2, "blocks")
    hidden: int = setting(128, "width of the residual stream")
    heads: int = setting(4, "attention heads")
    ffn: int = setting(512, "width of the MLP")
    vocab: int = setting(2048, "rows of the embedding, the four special tokens' included")
    max_positions: int = setting(512, "longest sequence")
    segments: int = setting(2, "kinds of segments that a token may belong to")
    norm_eps: float = setting(1e-12, "added under the norm's root")
    dropout: float = setting(0.0, "share of the embedding's and the sub-blocks' outputs that is dropped in training")
    masking: Masking = setting(Masking.TOKENS, "what is masked together: tokens or spans")
    family: str = setting("bert", "model family")
    name: str = setting("custom", "what reports call it")

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "ffn", "max_positions"):
            size = getattr(self, name)
            require(size >= 1, f"model.{name}: must be at least 1, got {size}")
        require(self.layers <= MAX_LAYERS, f"model.layers: must be at most {MAX_LAYERS}, got {self.layers}")
        require(
            self.vocab > SPECIAL_TOKENS,
            f"model.vocab: {self.vocab} leaves no token beside [PAD], [CLS], [SEP] and [MASK]; at least 5",
        )
        require(self.segments >= 2, f"model.segments: must be at least 2, a pair's two texts, got {self.segments}")
        require(0 < self.norm_eps < float("inf"), f"model.norm_eps: must be positive and finite, got {self.norm_eps}")
        require(0 <= self.dropout < 1, f"model.dropout: must be in [0, 1), got {self.dropout}")
        require(
            self.hidden % self.heads == 0,
            f"model.heads: hidden({self.hidden}) % heads({self.heads}) != 0; give other heads",
        )
        require(self.family == "bert", f"model.family: {self.family!r} is not 'bert'")

    @property
    def kv_heads(self) -> int:  # type: ignore[override]
        """As many as heads."""
        return self.heads

    @property
    def head_dim(self) -> int:  # type: ignore[override]
        """Width of a head."""
        return self.hidden // self.heads

    @property
    def tied(self) -> bool:  # type: ignore[override]
        """The decoder of masked tokens always shares the embedding's weight."""
        return True

    @property
    def task(self) -> TaskKind:  # type: ignore[override]
        """Masked tokens, and whether the second text follows the first."""
        return TaskKind.MASKED

    @property
    def reserved_ids(self) -> int:  # type: ignore[override]
        """The special tokens."""
        return SPECIAL_TOKENS

    @property
    def pad(self) -> int:
        """Id of [PAD]."""
        return self.vocab - 4

    @property
    def cls(self) -> int:
        """Id of [CLS], before the first text."""
        return self.vocab - 3

    @property
    def sep(self) -> int:
        """Id of [SEP], after either text."""
        return self.vocab - 2

    @property
    def mask(self) -> int:
        """Id of [MASK]."""
        return self.vocab - 1
