"""What the specifications of encoder-decoders share: blocks of two stacks, checks of sizes. Torch-free."""

from __future__ import annotations

from enum import StrEnum

from suite.models.base import ModelSpec
from suite.models.decoder import MAX_LAYERS
from suite.parse import require


class Feed(StrEnum):
    """The feed-forward network of a block."""

    RELU = "relu"  # two matrices: down(relu(up(x)))
    GATED_GELU = "gated-gelu"  # three: down(gelu(gate(x)) * up(x)), tanh form (arXiv:2002.05202)


class EncoderDecoderSpec(ModelSpec):
    """The base of encoder-decoders: `encoder_layers` blocks read the source, the others of `layers` the target and, by
    cross-attention, what the encoder made of the source. Attention has as many key-value heads as heads."""

    encoder_layers: int
    norm_eps: float

    @property
    def decoder_layers(self) -> int:
        """Blocks of the decoder."""
        return self.layers - self.encoder_layers

    @property
    def q_dim(self) -> int:
        """Width of all queries, keys or values together: heads x head_dim."""
        return self.heads * self.head_dim

    @property
    def end_id(self) -> int:
        """What ends a sequence."""
        raise NotImplementedError

    @property
    def pad_id(self) -> int:
        """What begins a target, and fills a short sequence up."""
        raise NotImplementedError

    @property
    def head_scale(self) -> float:
        """What the decoder's output is multiplied by before the head."""
        return 1.0

    @property
    def is_encoder_decoder(self) -> bool:
        """Always."""
        return True

    def target_len(self, seq_len: int) -> int:
        """Tokens of a target whose source has seq_len. SpecError where no source is that short."""
        raise NotImplementedError

    def check_sizes(self) -> None:
        """Settle what follows from other settings, and refuse sizes that make no model."""
        for name in ("layers", "hidden", "heads", "ffn", "vocab", "max_positions"):
            size = getattr(self, name)
            require(size >= 1, f"model.{name}: must be at least 1, got {size}")
        require(
            2 <= self.layers <= MAX_LAYERS,
            f"model.layers: must be from 2, an encoder's and a decoder's, to {MAX_LAYERS}, got {self.layers}",
        )
        object.__setattr__(self, "encoder_layers", self.encoder_layers or self.layers // 2)
        require(
            1 <= self.encoder_layers < self.layers,
            f"model.encoder_layers: {self.encoder_layers} of layers({self.layers}) leave no block to one of the stacks",
        )
        if not self.head_dim:
            require(
                self.hidden % self.heads == 0,
                f"model.heads: hidden({self.hidden}) % heads({self.heads}) != 0; give head_dim or other heads",
            )
            object.__setattr__(self, "head_dim", self.hidden // self.heads)
        require(self.head_dim >= 1, f"model.head_dim: must be at least 1, got {self.head_dim}")
        require(0 < self.norm_eps < float("inf"), f"model.norm_eps: must be positive and finite, got {self.norm_eps}")
        require(
            self.vocab > self.reserved_ids,
            f"model.vocab: {self.vocab} leaves no id to text beside the {self.reserved_ids} that are reserved",
        )
