"""BERT's task: masked tokens, and whether the second of two texts follows the first (arXiv:1810.04805, section 3.1).

A row is [CLS] A [SEP] B [SEP] and padding. What follows the paper and its released code (create_pretraining_data.py):
half of the pairs have B from elsewhere, a tenth of the rows are short, 15 % of a row's text is asked for, of which
80 % is replaced by [MASK], 10 % by a random token, and 10 % kept. Texts are runs of tokens: the corpora have no
sentences marked, nor phrases, so that under span masking (arXiv:1904.09223, section 3.2.3) runs of 2 to 4 tokens stand
for phrases; a run has one fate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from suite.models.base import IGNORED
from suite.models.bert import BertSpec, Masking
from suite.parse import SpecError, require
from suite.tasks.base import Examples, Rows, Task, TextWindows, row_random

if TYPE_CHECKING:
    from suite.case import Case

#: [CLS], and a [SEP] after either text
SPECIAL_PLACES = 3
#: a text of each half
LEAST_TEXT = 2
MASKED_RATE, SHORT_RATE, RANDOM_RATE = 0.15, 0.1, 0.5
#: of the tokens that are asked for: replaced by [MASK], and by a random token
BLANK_SHARE, NOISE_SHARE = 0.8, 0.1
SPAN_LENGTHS = (2, 3, 4)
#: windows that are drawn for a B from elsewhere until one is not the row's own
DRAWS = 10
FOLLOWS, RANDOM = 0, 1


@dataclass(frozen=True)
class Row:
    """One example, unpadded."""

    ids: Rows
    labels: Rows
    segments: Rows
    next_label: int


def text_tokens(case: Case) -> int:
    """Tokens of text in a full row. SpecError where a row has no room for a pair."""
    tokens = case.workload.seq_len - SPECIAL_PLACES
    require(
        tokens >= LEAST_TEXT,
        f"workload.seq_len: {case.workload.seq_len} has no room for [CLS] A [SEP] B [SEP];"
        f" at least {SPECIAL_PLACES + LEAST_TEXT}",
    )
    return tokens


def examples(case: Case, windows: TextWindows, step: int, rows: int) -> Examples:
    """A step's rows; what a row becomes follows from the recipe's seed, the step and its place in the batch."""
    spec = _spec(case)
    texts, _ = windows.global_batch(step, rows)
    made = [_row(spec, text, windows, row_random(case.recipe.seed, step, place)) for place, text in enumerate(texts)]
    shape = (rows, case.workload.seq_len)
    ids, labels, segments = np.full(shape, spec.pad), np.full(shape, IGNORED), np.zeros(shape, np.int64)
    for place, row in enumerate(made):
        length = len(row.ids)
        ids[place, :length], labels[place, :length], segments[place, :length] = row.ids, row.labels, row.segments
    extras = {
        "segments": segments,
        "lengths": np.array([len(row.ids) for row in made]),
        "next_labels": np.array([row.next_label for row in made]),
    }
    return Examples(ids, labels, extras)


def _spec(case: Case) -> BertSpec:
    if isinstance(case.model, BertSpec):
        return case.model
    raise SpecError(f"model.family: {case.model.family!r} has no masked tokens to learn; give bert")


def _row(spec: BertSpec, text: Rows, windows: TextWindows, draw: np.random.Generator) -> Row:
    length = int(draw.integers(LEAST_TEXT, len(text))) if len(text) > LEAST_TEXT and draw.random() < SHORT_RATE else 0
    length = length or len(text)
    cut = int(draw.integers(1, length))
    first, second = text[:cut], text[cut:length]
    is_random = draw.random() < RANDOM_RATE
    if is_random:
        second = _elsewhere(text, windows, draw)[cut:length]
    ids = np.concatenate([[spec.cls], first, [spec.sep], second, [spec.sep]])
    segments = np.repeat([0, 1], [cut + 2, length - cut + 1])
    chosen = _spans(draw, cut, length) if spec.masking is Masking.SPANS else _tokens(draw, length)
    labels = np.full(len(ids), IGNORED)
    for span in chosen:
        places = span + 1 + (span >= cut)  # past [CLS], and past the first [SEP]
        labels[places] = ids[places]
        ids[places] = _replacement(spec, draw, ids[places])
    return Row(ids, labels, segments, RANDOM if is_random else FOLLOWS)


def _elsewhere(text: Rows, windows: TextWindows, draw: np.random.Generator) -> Rows:
    """Another window of the text; the row's own where no other is found."""
    for _ in range(DRAWS):
        other = windows.global_batch(int(draw.integers(windows.count)), 1)[0][0]
        if not np.array_equal(other, text):
            return other
    return text


def asked(length: int) -> int:
    """Of so many tokens of text, those that are asked for: 15 %, rounded, one at least."""
    return max(1, round(MASKED_RATE * length))


def _tokens(draw: np.random.Generator, length: int) -> list[Rows]:
    """The places of the text that are asked for, each by itself."""
    return [np.array([place]) for place in np.sort(draw.permutation(length)[: asked(length)])]


def _spans(draw: np.random.Generator, cut: int, length: int) -> list[Rows]:
    """The same in runs that lie in one text each and do not touch; the last is cut to what is left to ask for."""
    left, found = asked(length), []
    free = np.ones(length, bool)
    for start in draw.permutation(length).tolist():
        if not left:
            break
        stop = min(start + int(draw.choice(SPAN_LENGTHS)), start + left, cut if start < cut else length)
        if free[max(0, start - 1) : stop + 1].all():
            found.append(np.arange(start, stop))
            free[start:stop] = False
            left -= stop - start
    return found


def _replacement(spec: BertSpec, draw: np.random.Generator, ids: Rows) -> Rows:
    """What the model reads in place of a run."""
    fate = draw.random()
    if fate < BLANK_SHARE:
        return np.full(len(ids), spec.mask)
    if fate < BLANK_SHARE + NOISE_SHARE:
        return draw.integers(spec.vocab - spec.reserved_ids, size=len(ids))
    return ids


MASKED = Task(window=text_tokens, examples=examples)
