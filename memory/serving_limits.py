"""How much fits when a model is served: the largest batch at a context, the longest context at a batch.

Both by search over the very peaks that `estimate --new-tokens` gives, so that what is answered fits and one more does
not. More tokens never need less, nor do more sequences as long as each has as large a part of a forward pass; where a
step's tokens are shared out among the prompts, sizes whose parts are equal are searched one range after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memory.published_inference import fullest_rank, inference_of, resized
from suite.case import Case
from suite.serving_rules import context_tokens

#: where the search for a batch ends: engines take a thousand at most (vLLM: max_num_seqs)
MOST_SEQUENCES = 2**13


@dataclass(frozen=True)
class Limits:
    """What `room_bytes` a rank have room for. `step_tokens`: tokens of all prompts together that one forward pass reads
    (chunked prefill, arXiv:2308.16369, section 4.1); None: the case's own prefill_tokens of each."""

    case: Case
    room_bytes: int
    step_tokens: int | None

    def peak_bytes(self, batch: int, context: int) -> int:
        """Bytes of the fullest rank, with so many sequences of so many tokens."""
        return fullest_rank(inference_of(resized(self.case, batch, context, self.step_tokens)))[1]

    def fits(self, batch: int, context: int) -> bool:
        """Do so many sequences of so many tokens have room?"""
        return self.peak_bytes(batch, context) <= self.room_bytes

    def largest_batch(self, context: int) -> int:
        """The most sequences of `context` tokens each; 0 where not one fits, MOST_SEQUENCES where nothing ends it."""
        top = _last(lambda batch: self._holds(batch, context), 0, MOST_SEQUENCES)
        while top:
            least = self._same_part(top)
            if self.fits(least, context):
                return _last(lambda batch: self.fits(batch, context), least, top)
            top = least - 1
        return 0

    def longest_context(self, batch: int) -> int:
        """The most tokens, prompt and answer, that each of `batch` sequences can have, at most the model's positions
        (or the case's own context, where positions are counted anew); 0 where not even two fit."""
        positions = max(self.case.model.max_positions, context_tokens(self.case))
        if self.fits(batch, positions):
            return positions
        longest = _last(lambda context: self.fits(batch, context), 1, positions)
        return longest if longest > 1 else 0

    def _holds(self, batch: int, context: int) -> bool:
        """Would they have room if forward passes were as short as they get? Never less with more sequences."""
        return fullest_rank(inference_of(resized(self.case, batch, context, batch)))[1] <= self.room_bytes

    def _same_part(self, batch: int) -> int:
        """The fewest sequences whose prompts have as large a part of a step's tokens."""
        if self.step_tokens is None:
            return 1
        part = max(1, self.step_tokens // batch)
        return self.step_tokens // (part + 1) + 1


def _last(fits: Callable[[int], bool], least: int, most: int) -> int:
    """The largest size from `least` to `most` that fits, if all below one that fits do too; `least` is not tried."""
    low, step = least, 1
    while low + step <= most and fits(low + step):
        low, step = low + step, step * 2
    high = min(low + step, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
