"""Span corruption (arXiv:1910.10683, section 3.1.4): runs of tokens give way to sentinels, and are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from suite.models.span_lengths import SpanLengths, lengths_of_source
from suite.models.t5 import T5Spec
from suite.parse import require
from suite.tasks.base import Examples, Rows, Task, TextWindows, row_random

if TYPE_CHECKING:
    from suite.case import Case


def _spec(case: Case) -> T5Spec:
    assert isinstance(case.model, T5Spec)
    return case.model


def _lengths(case: Case) -> SpanLengths:
    spec, lengths = _spec(case), lengths_of_source(case.workload.seq_len)
    require(
        lengths.spans <= spec.sentinels,
        f"workload.seq_len: {case.workload.seq_len} makes {lengths.spans} spans, and model.sentinels is"
        f" {spec.sentinels}; give a shorter one, or more sentinels",
    )
    return lengths


def window(case: Case) -> int:
    """Tokens of text whose source fills seq_len. SpecError for more spans than the model has sentinels."""
    return _lengths(case).text


def examples(case: Case, windows: TextWindows, step: int, rows: int) -> Examples:
    """Sources [B, s], targets [B, t] and, one place on, what the decoder reads. The row's generator draws."""
    spec, lengths = _spec(case), _lengths(case)
    texts, _ = windows.global_batch(step, rows)
    sources = np.empty((rows, lengths.source), dtype=np.int64)
    targets = np.empty((rows, lengths.target), dtype=np.int64)
    for row, text in enumerate(texts):
        is_noise = noise_mask(lengths, row_random(case.recipe.seed, step, row))
        sources[row] = corrupted(text, is_noise, spec)
        targets[row] = corrupted(text, ~is_noise, spec)
    starts = np.full((rows, 1), spec.pad_id, dtype=np.int64)
    return Examples(sources, targets, {"decoder_ids": np.concatenate([starts, targets[:, :-1]], axis=1)})


def noise_mask(lengths: SpanLengths, random: np.random.Generator) -> Rows:
    """Which tokens of a text are replaced, [text]: noise and the rest are each cut into `spans` parts, none empty, all
    ways to do so alike likely, and take turns, the rest first."""
    kept = _parts(lengths.text - lengths.noise, lengths.spans, random)
    noise = _parts(lengths.noise, lengths.spans, random)
    runs = np.stack([kept, noise], axis=1).flatten()
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def _parts(count: int, parts: int, random: np.random.Generator) -> Rows:
    """`count` cut at random into so many parts of at least one."""
    cuts = np.sort(random.choice(count - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [count]]))


def corrupted(text: Rows, is_gone: Rows, spec: T5Spec) -> Rows:
    """The tokens that stay, a sentinel for every run that is gone (the last id for the first), and the end."""
    begins = is_gone & ~np.concatenate([[False], is_gone[:-1]])
    sentinels = spec.vocab - np.cumsum(begins)
    left = np.where(begins, sentinels, text)[begins | ~is_gone]
    return np.append(left, spec.end_id)


SPANS = Task(window, examples)
