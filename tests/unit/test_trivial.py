"""The loss of guessing by frequency, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from suite.case import case_from
from suite.data import TokenData, unigram_cross_entropy_nats
from suite.trivial import answer_chances, trivial_nats


def data_of(train: list[int], held: list[int]) -> TokenData:
    """A corpus of these ids."""
    arrays = np.array(train, np.int32), np.array(held, np.int32)
    return TokenData("made up", "", *arrays, 8, unigram_cross_entropy_nats(*arrays, 8), 1.0, "")


def test_answers_are_as_frequent_as_text_and_as_reserved_ids_among_them() -> None:
    """Ids 0 to 2 are text, 3 and 4 reserved. Text: 0 twice and 1 once, one added each: 3, 2 and 1 of 6. Of six answers
    two are reserved, 3 both times; one added each: 3 and 1, four of eight."""
    chances = answer_chances(np.array([0, 0, 1]), np.array([0, 1, 0, 1, 3, 3]), vocab=5, reserved=2)
    assert chances == pytest.approx([0.5 * 3 / 6, 0.5 * 2 / 6, 0.5 / 6, 0.5 * 3 / 4, 0.5 / 4])


def test_a_language_model_has_the_texts_own() -> None:
    data = data_of([0, 1, 1, 2] * 40, [1, 2] * 40)
    case = case_from({"model": "gpt-1m", "workload": {"seq_len": 8}})
    assert trivial_nats(case, data) == data.unigram_entropy_nats


def test_masked_tokens_are_guessed_by_frequency_and_the_pair_by_a_coin() -> None:
    """Every token is id 5: seen 400 times of 400 over 2,044 ids that text may have. No reserved id is asked for: four
    chances of one in (answers + 4). The text makes 30 rows of 13 tokens, of each of which 1 or 2 are asked for."""
    data = data_of([5] * 400, [5] * 400)
    case = case_from({"model": "bert-1m", "workload": {"seq_len": 16}})
    loss = trivial_nats(case, data) - math.log(2)
    least, most = ((400 + 1) / (400 + 2044) * (1 - 4 / (answers + 4)) for answers in (30, 60))
    assert -math.log(most) < loss < -math.log(least)


def test_smoothing_spreads_its_share_over_the_vocabulary() -> None:
    """A share goes from the answer's -ln p to its mean over the vocabulary: ln V where all are alike, else more."""
    model = {"family": "transformer", "vocab": 64, "layers": 2, "hidden": 16, "heads": 2, "ffn": 32}
    data = data_of([5] * 400, [5] * 400)
    losses = [
        trivial_nats(case_from({"model": model | {"label_smoothing": share}, "workload": {"seq_len": 16}}), data)
        for share in (0.0, 0.1, 0.2)
    ]
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0])
    assert (losses[1] - 0.9 * losses[0]) / 0.1 > math.log(64) > losses[0]
