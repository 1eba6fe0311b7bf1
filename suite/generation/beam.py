"""Beam search for answers of a fixed length: the likeliest `beams` beginnings of each are kept after every token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Beams:
    """Beginnings of answers to n prompts, the likeliest of each prompt first."""

    tokens: Tensor
    """[n, beams, made], int64"""
    scores: Tensor
    """[n, beams], fp32: the sum of their tokens' log-probabilities; -inf where there is no such beginning"""

    @classmethod
    def begun(cls, prompts: int, beams: int, device: torch.device) -> Beams:
        """Nothing made yet: one beginning of each prompt, which the others are copies of and do not count."""
        scores = torch.full((prompts, beams), float("-inf"), device=device)
        scores[:, 0] = 0.0
        return cls(torch.empty(prompts, beams, 0, dtype=torch.int64, device=device), scores)

    def extended(self, logits: Tensor) -> tuple[Beams, Tensor]:
        """One token more: the likeliest of all beginnings of a prompt with all tokens of the vocabulary behind them,
        given logits [n * beams, V]; and of each the row that it goes on from, [n * beams]."""
        prompts, beams = self.scores.shape
        vocab = logits.shape[-1]
        totals = self.scores.unsqueeze(-1) + F.log_softmax(logits.float(), dim=-1).view(prompts, beams, vocab)
        scores, places = totals.flatten(1).sort(dim=-1, descending=True, stable=True)
        places, scores = places[:, :beams], scores[:, :beams]
        parents, chosen = places // vocab, places % vocab
        came = self.tokens.gather(1, parents.unsqueeze(-1).expand(-1, -1, self.tokens.shape[-1]))
        tokens = torch.cat((came, chosen.unsqueeze(-1)), dim=-1)
        firsts = torch.arange(prompts, device=logits.device).unsqueeze(-1) * beams
        return Beams(tokens, scores), (firsts + parents).flatten()
