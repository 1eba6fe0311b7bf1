"""Serving: what a model answers. micro_batch prompts of seq_len tokens are read, then tokens are made of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from suite.parse import require, setting


class Sampling(StrEnum):
    """How the next token is chosen."""

    GREEDY = "greedy"  # the likeliest
    TOP_K = "top-k"  # drawn from the k likeliest (arXiv:1805.04833, section 5.4)
    TOP_P = "top-p"  # drawn from the fewest whose probabilities reach p (arXiv:1904.09751, section 3.1)
    BEAM = "beam"  # the likeliest whole answers found by keeping `beams` of them


@dataclass(frozen=True)
class Serving:
    """How the case's model answers; with new_tokens None it is trained instead."""

    new_tokens: int | None = setting(None, "serve the model: tokens made of each prompt (none: it is trained)")
    shortest_prompt: int = setting(0, "prompts' lengths are spread evenly from this to seq_len (0: all seq_len)")
    prefill_tokens: int = setting(0, "tokens of a prompt that one forward pass reads (0: all)")
    sampling: Sampling = setting(Sampling.GREEDY, "how tokens are chosen: greedy, top-k, top-p, beam")
    top_k: int = setting(50, "with top-k: tokens drawn from")
    top_p: float = setting(0.9, "with top-p: probability that the tokens drawn from reach")
    temperature: float = setting(1.0, "with top-k and top-p: logits are divided by it")
    beams: int = setting(4, "with beam: answers kept of each prompt")

    def __post_init__(self) -> None:
        require(
            self.new_tokens is None or self.new_tokens >= 1,
            f"serving.new_tokens: must be at least 1 where it is given, got {self.new_tokens}",
        )
        for name in ("shortest_prompt", "prefill_tokens"):
            require(getattr(self, name) >= 0, f"serving.{name}: must be at least 0, got {getattr(self, name)}")
        for name in ("top_k", "beams"):
            require(getattr(self, name) >= 1, f"serving.{name}: must be at least 1, got {getattr(self, name)}")
        require(0 < self.top_p <= 1, f"serving.top_p: must be in (0, 1], got {self.top_p}")
        require(
            0 < self.temperature < math.inf, f"serving.temperature: must be positive and finite, got {self.temperature}"
        )

    @property
    def copies(self) -> int:
        """Sequences that the cache holds of each prompt."""
        return self.beams if self.sampling is Sampling.BEAM else 1
