"""Denoising: the clean text from a copy of it with tokens dropped, replaced and swapped; some rows are short."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from suite.models.transformer import TransformerSpec
from suite.tasks.base import IGNORED, Examples, Rows, Task, TextWindows, row_random

if TYPE_CHECKING:
    from suite.case import Case

#: shares of a text's tokens that are dropped, replaced by another, and swapped with the next one
DROPPED, REPLACED, SWAPPED = 0.1, 0.1, 0.1
#: share of the rows that are shorter than the others: by up to half
SHORT = 0.25


def _spec(case: Case) -> TransformerSpec:
    assert isinstance(case.model, TransformerSpec)
    return case.model


def window(case: Case) -> int:
    """Tokens of a row's text: the end's place is taken."""
    return _spec(case).target_len(case.workload.seq_len) - 1


def examples(case: Case, windows: TextWindows, step: int, rows: int) -> Examples:
    """Noisy sources [B, s] with their lengths [B], clean targets [B, s] and, one place on, what the decoder reads.
    Which tokens suffer: the row's generator."""
    spec, shape = _spec(case), (rows, case.workload.seq_len)
    texts, _ = windows.global_batch(step, rows)
    sources, reads = np.full(shape, spec.pad_id, dtype=np.int64), np.full(shape, spec.pad_id, dtype=np.int64)
    targets, lengths = np.full(shape, IGNORED, dtype=np.int64), np.empty(rows, dtype=np.int64)
    for row, text in enumerate(texts):
        random = row_random(case.recipe.seed, step, row)
        count = len(text)
        if random.random() < SHORT:
            count -= int(random.integers(count // 2 + 1))
        clean = text[:count]
        noised = np.append(noisy(clean, spec.vocab - spec.reserved_ids, random), spec.end_id)
        lengths[row] = len(noised)
        sources[row, : len(noised)] = noised
        targets[row, : count + 1] = np.append(clean, spec.end_id)
        reads[row, 1 : count + 1] = clean
    return Examples(sources, targets, {"decoder_ids": reads, "source_lengths": lengths})


def noisy(text: Rows, vocab: int, random: np.random.Generator) -> Rows:
    """A copy of a text, at most as long: tokens are replaced by any of the vocabulary's, swapped, dropped, in turn."""
    copy = np.where(random.random(len(text)) < REPLACED, random.integers(vocab, size=len(text)), text)
    for place in np.flatnonzero(random.random(max(0, len(text) - 1)) < SWAPPED):
        copy[[place, place + 1]] = copy[[place + 1, place]]
    return copy[random.random(len(text)) >= DROPPED]


DENOISING = Task(window, examples)
