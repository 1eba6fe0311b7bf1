"""What every model family's specification answers, whatever its form. Torch-free."""

from __future__ import annotations

from enum import StrEnum

from suite.models.experts import Experts
from suite.models.latent_shape import Latent

#: the label of a place where nothing is asked: torch's cross_entropy's own
IGNORED = -100


class TaskKind(StrEnum):
    """What a family is trained to do, and so how its batches are made of a corpus (suite/tasks)."""

    NEXT_TOKEN = "next-token"  # every token of a window from those before it
    MASKED = "masked"  # BERT: masked tokens, and whether the second part follows the first (arXiv:1810.04805)
    SPANS = "spans"  # T5: what the sentinels stand for (arXiv:1910.10683, section 3.1.4)
    DENOISING = "denoising"  # the clean text from a noisy copy of it


class ModelSpec:
    """The base of families' specifications, which are frozen dataclasses: fields where a family has them, and here
    what it is without them. A formula that reads only these serves every family."""

    family: str
    name: str
    layers: int
    """blocks, of encoder and decoder together"""
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_positions: int
    tied: bool
    dropout: float = 0.0
    window: int | None = None
    latent: Latent | None = None
    experts: Experts | None = None
    task: TaskKind = TaskKind.NEXT_TOKEN
    reserved_ids: int = 0
    """the vocabulary's last ids, which no text becomes: a mask's, sentinels', padding's"""

    @property
    def is_causal_decoder(self) -> bool:
        """A stack of blocks that each read only what is before a token: what pipelines, context parallelism, caches and
        generation are built for."""
        return False

    @property
    def is_encoder_decoder(self) -> bool:
        """Two stacks of blocks, of which the second reads what the first made: what tensor parallelism is not built
        for."""
        return False

    def target_len(self, seq_len: int) -> int:
        """Tokens of the answers to a text of seq_len. SpecError where the family's task has none so short."""
        return seq_len
