"""What a model must beat: the loss of a predictor that knows only how often each answer is asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from suite.data import TokenData, train_windows, validation_windows
from suite.models.base import IGNORED, TaskKind
from suite.tasks.base import Rows
from suite.tasks.table import task_of

if TYPE_CHECKING:
    from suite.case import Case

#: rows of either part of the text that a task's answers are counted in
ROWS = 128


def trivial_nats(case: Case, data: TokenData) -> float:
    """Nats an answer, on held-out text, of guessing by frequency alone, as the case's loss counts them.

    Language modelling: the text's unigram cross-entropy. Elsewhere answers are text, as frequent as in the training
    text, or reserved ids (sentinels, ends), as frequent as in ROWS of the task's rows, one added to each count. A pair
    to be told adds ln 2; label smoothing spreads its share over the vocabulary (arXiv:1512.00567, section 7).
    """
    if case.model.task is TaskKind.NEXT_TOKEN:
        return data.unigram_entropy_nats
    task = task_of(case.model)
    tokens = task.window(case)
    seen = train_windows(data, case.recipe, tokens)
    kept = validation_windows(data, case.recipe, tokens, 1)
    trained, held = (
        task.examples(case, windows, 0, min(ROWS, windows.count)).labels.ravel() for windows in (seen, kept)
    )
    chances = answer_chances(data.train, trained[trained != IGNORED], case.model.vocab, case.model.reserved_ids)
    surprise = -np.log(chances)
    smoothing = getattr(case.model, "label_smoothing", 0.0)
    nats = (1 - smoothing) * surprise[held[held != IGNORED]].mean() + smoothing * surprise.mean()
    return float(nats) + (math.log(2) if case.model.task is TaskKind.MASKED else 0.0)


def answer_chances(text: Rows, answers: Rows, vocab: int, reserved: int) -> Rows:
    """How likely each of the vocabulary's ids is as an answer, [vocab]: reserved ids, the last ones, by their share of
    the answers, what is left by the text's frequencies."""
    words = vocab - reserved
    of_text = np.bincount(text, minlength=words)[:words] + 1.0
    of_reserved = np.bincount(answers[answers >= words] - words, minlength=reserved)[:reserved] + 1.0
    share = of_reserved.sum() / (len(answers) + reserved)
    chances: Rows = np.concatenate([(1 - share) * of_text / of_text.sum(), share * of_reserved / of_reserved.sum()])
    return chances
