"""BERT's examples: how often what is done to them, the same on every layout, and whole spans under span masking.

Rates are held to exact binomial bounds: a right rule leaves them once in a million runs, and the draws are fixed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import exp, lgamma, log

import numpy as np
import pytest

from parallelism.batches import batch_of
from suite.case import Case, case_from
from suite.data import Windows
from suite.layout import Layout
from suite.models.base import IGNORED
from suite.models.bert import BertSpec, Masking
from suite.parse import SpecError
from suite.spec import Recipe, Workload
from suite.tasks.base import Examples
from suite.tasks.masked import asked, examples, text_tokens

pytestmark = pytest.mark.unit

VOCAB = 2000
SPEC = BertSpec(vocab=VOCAB + 4, max_positions=128)
PAD, CLS, SEP, MASK = range(VOCAB, VOCAB + 4)
ROWS, SEQ_LEN = 600, 128
RARE = 1e-6
RANDOM_PAIR = 1


def case(spec: BertSpec = SPEC, seq_len: int = SEQ_LEN, rows: int = ROWS, layout: Layout | None = None) -> Case:
    """Rows of so many tokens."""
    ranks = 1 if layout is None else layout.data_ranks
    work = Workload(seq_len=seq_len, micro_batch=rows // ranks)
    return Case(spec, layout or Layout(), work, recipe=Recipe(seed=11))


def windows(one: Case) -> Windows:
    """A text in which every window tells where it is from: token i is i mod VOCAB."""
    return Windows(np.arange(100_000, dtype=np.int32) % VOCAB, text_tokens(one), text_tokens(one), seed=11)


@cache
def sample(masking: Masking) -> Examples:
    """A step's rows."""
    one = case(replace(SPEC, masking=masking))
    return examples(one, windows(one), 0, ROWS)


def is_within(found: int, trials: int, rate: float) -> bool:
    """Is a count of successes one that the rate leaves? By the binomial distribution: neither tail from it on may be
    rarer than half of RARE."""

    def probability(count: int) -> float:
        ways = lgamma(trials + 1) - lgamma(count + 1) - lgamma(trials - count + 1)
        return exp(ways + count * log(rate) + (trials - count) * log(1 - rate))

    below, above = range(found + 1), range(found, trials + 1)
    return min(sum(map(probability, below)), sum(map(probability, above))) > RARE / 2


def texts(given: Examples) -> np.ndarray:
    """What the rows held before anything was replaced, [B, s]."""
    return np.where(given.labels == IGNORED, given.ids, given.labels)


@pytest.mark.parametrize("masking", Masking)
def test_rows_are_a_pair_between_special_tokens_and_padding(masking: Masking) -> None:
    given = sample(masking)
    lengths = given.extras["lengths"]
    for row, length in enumerate(lengths):
        first, last = np.flatnonzero(given.ids[row] == SEP)
        assert given.ids[row, 0] == CLS
        assert last == length - 1
        assert (given.ids[row, length:] == PAD).all()
        assert not (given.ids[row, :length] == PAD).any()
        assert (given.extras["segments"][row] == ((np.arange(SEQ_LEN) > first) & (np.arange(SEQ_LEN) < length))).all()
        special = np.r_[0, first, last, length:SEQ_LEN]
        assert (given.labels[row, special] == IGNORED).all()
    assert given.ids.shape == given.labels.shape == (ROWS, SEQ_LEN)


def test_some_rows_are_short_so_that_padding_is_used() -> None:
    short = int((sample(Masking.TOKENS).extras["lengths"] < SEQ_LEN).sum())
    assert is_within(short, ROWS, 0.1)


def test_half_of_the_second_texts_follow_the_first_and_the_rest_come_from_elsewhere() -> None:
    given = sample(Masking.TOKENS)
    kinds = given.extras["next_labels"]
    assert is_within(int((kinds == RANDOM_PAIR).sum()), ROWS, 0.5)
    whole = texts(given)
    for row, kind in enumerate(kinds):
        cut = int(np.flatnonzero(given.ids[row] == SEP)[0])
        follows = whole[row, cut + 1] == (whole[row, cut - 1] + 1) % VOCAB
        assert follows == (kind != RANDOM_PAIR)


@pytest.mark.parametrize("masking", Masking)
def test_of_each_row_15_percent_of_the_text_is_asked_for(masking: Masking) -> None:
    given = sample(masking)
    counts = (given.labels != IGNORED).sum(axis=1)
    text = given.extras["lengths"] - 3
    assert (np.abs(counts - 0.15 * text) <= np.maximum(0.5, 1 - 0.15 * text)).all()
    assert counts.min() >= 1


def test_every_place_of_the_text_is_asked_for_alike() -> None:
    given = sample(Masking.TOKENS)
    full = given.labels[given.extras["lengths"] == SEQ_LEN]
    share = asked(SEQ_LEN - 3) / (SEQ_LEN - 3)
    for start in range(0, SEQ_LEN, 32):  # a few thousand places each; special ones have none
        part = full[:, start : start + 32] != IGNORED
        kept = given.ids[given.extras["lengths"] == SEQ_LEN][:, start : start + 32]
        ordinary = int((~np.isin(kept, (CLS, SEP))).sum())
        assert is_within(int(part.sum()), ordinary, share)


def test_what_is_asked_for_is_blanked_replaced_or_kept_80_10_10() -> None:
    given = sample(Masking.TOKENS)
    is_asked = given.labels != IGNORED
    read, wanted = given.ids[is_asked], given.labels[is_asked]
    blank, kept = int((read == MASK).sum()), int((read == wanted).sum())
    noise = len(read) - blank - kept
    assert is_within(blank, len(read), 0.8)
    assert is_within(kept, len(read), 0.1 + 0.1 / VOCAB)  # a random token may be the same
    assert is_within(noise, len(read), 0.1 - 0.1 / VOCAB)
    random = read[(read != MASK) & (read != wanted)]
    assert random.max() < VOCAB
    assert is_within(int((random < VOCAB // 2).sum()), len(random), 0.5)


def runs_of(row: np.ndarray) -> list[np.ndarray]:
    """Places that are asked for, in runs of neighbours."""
    places = np.flatnonzero(row != IGNORED)
    return np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)


def test_spans_are_runs_of_one_fate_within_one_text() -> None:
    given = sample(Masking.SPANS)
    lengths, fates = [], {"blank": 0, "noise": 0, "kept": 0}
    for row in range(ROWS):
        for run in runs_of(given.labels[row]):
            lengths.append(len(run))
            assert len(set(given.extras["segments"][row, run])) == 1
            read, wanted = given.ids[row, run], given.labels[row, run]
            blanks = read == MASK
            assert blanks.all() or not blanks.any()
            fates["blank" if blanks.all() else "kept" if (read == wanted).all() else "noise"] += 1
    assert max(lengths) == 4
    assert np.mean(lengths) > 2
    assert is_within(fates["blank"], len(lengths), 0.8)
    assert is_within(fates["noise"], len(lengths), 0.1)
    alone = [len(run) for row in sample(Masking.TOKENS).labels for run in runs_of(row)]
    assert np.mean(alone) < 1.3


def test_examples_follow_from_the_seed_and_the_step_alone() -> None:
    one = case(rows=8)
    again, later = (examples(one, windows(one), step, 8) for step in (3, 4))
    here = examples(one, windows(one), 3, 8)
    assert (here.ids == again.ids).all()
    assert not (here.ids == later.ids).all()
    assert (here.labels == again.labels).all()


def test_every_layout_has_the_same_global_batch_and_counts_every_label_once() -> None:
    whole = examples(case(rows=8), windows(case(rows=8)), 1, 8)
    spread = case(rows=8, layout=Layout(dp=4))
    device = pytest.importorskip("torch").device("cpu")
    parts = [batch_of(spread, rank, 1, examples(spread, windows(spread), 1, 8), device) for rank in range(4)]
    for name in ("segments", "lengths", "next_labels"):
        assert (np.concatenate([part.extras[name][0].numpy() for part in parts]) == whole.extras[name]).all()
    counts = [int((part.labels != IGNORED).sum()) for part in parts]
    assert len(set(counts)) > 1, "no row is short: another step would do"
    weights = [part.weights[0] for part in parts]
    assert weights == pytest.approx([4 * count / sum(counts) for count in counts])


def test_the_shortest_row_holds_a_token_of_each_text_and_a_shorter_one_is_refused() -> None:
    one = case(seq_len=5, rows=8)
    assert (examples(one, windows(one), 0, 8).extras["lengths"] == 5).all()
    with pytest.raises(SpecError, match=r"workload.seq_len: 4 has no room for \[CLS\] A \[SEP\] B \[SEP\]; at least 5"):
        text_tokens(case(seq_len=4, rows=8))


def test_a_decoder_has_no_masked_tokens() -> None:
    decoder = case_from({"model": "gpt-1m", "workload": {"seq_len": 16}})
    with pytest.raises(SpecError, match=r"model.family: 'decoder'"):
        examples(decoder, windows(decoder), 0, 1)
