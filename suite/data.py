"""Token arrays and the batches cut from them: the same global batch on every layout.

B sequences a global batch, s = seq_len. A window holds s + 1 tokens: the first s are the ids, the
last s are their labels. Which windows make up a batch depends on the seed, the step and B, never on
how many ranks share it; `rank_slice` then says which rank takes which rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from suite.case import Case
from suite.corpus import read_corpus
from suite.parse import require
from suite.spec import Recipe
from suite.tasks.base import Examples
from suite.tasks.table import task_of
from suite.tokenizer import load_tokenizer

#: One character in this many, from the end of the corpus, is held out.
HOLD_OUT = 10

Tokens = NDArray[np.int32]
Batch = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenData:
    """A tokenized corpus: what is trained on, and the tenth that is held out."""

    name: str
    """Where the text came from, in words."""
    path: str
    """recipe.data as given."""
    train: Tokens
    """Shape [tokens]: the first nine tenths of the characters. Read-only."""
    validation: Tokens
    """Shape [tokens]: the rest. Tokenized apart, so no token and no window spans both parts. Read-only."""
    vocab: int
    """Ids that the tokenizer can emit, all below the model's vocabulary."""
    unigram_entropy_nats: float
    """Loss, in nats a token, of guessing by frequency alone: see `unigram_cross_entropy_nats`."""
    bytes_per_token: float
    """UTF-8 bytes a token of the validation text: exp(loss / bytes_per_token) is its perplexity a byte."""
    digest: str
    """64 hex digits over the text and both arrays: equal digests mean that the same was trained on."""


def load_data(recipe: Recipe, model_vocab: int, cache: Path | None = None) -> TokenData:
    """Read recipe.data, hold out its last tenth, and tokenize both parts with recipe.tokenizer.

    A bpe tokenizer learns its merges from the training part alone. `model_vocab` is the model's
    number of embedding rows; `cache` is the tokenizer's (see `load_tokenizer`).

    Raises SpecError for a corpus that cannot be read or split, or a `model_vocab` that is too small.
    """
    corpus = read_corpus(recipe.data)
    length = len(corpus.text)
    require(
        length >= HOLD_OUT,
        f"recipe.data: {corpus.name!r} holds {length} characters; at least {HOLD_OUT} are needed to hold out a tenth",
    )
    cut = length - length // HOLD_OUT
    train_text, validation_text = corpus.text[:cut], corpus.text[cut:]
    tokenizer = load_tokenizer(recipe.tokenizer, train_text, model_vocab, cache)
    train, validation = _frozen(tokenizer.encode(train_text)), _frozen(tokenizer.encode(validation_text))
    return TokenData(
        name=corpus.name,
        path=recipe.data,
        train=train,
        validation=validation,
        vocab=tokenizer.vocab,
        unigram_entropy_nats=unigram_cross_entropy_nats(train, validation, tokenizer.vocab),
        bytes_per_token=len(validation_text.encode()) / len(validation),
        digest=_digest(corpus.sha256, train, validation),
    )


def unigram_cross_entropy_nats(train: Tokens, validation: Tokens, vocab: int) -> float:
    """Mean of -ln p(token) over `validation`, p being the token's frequency in `train` with one added to each count.

    p(t) = (count(t) + 1) / (len(train) + vocab). This is the loss of a predictor that looks at no
    context: a trained model that does not get below it has learned nothing about order. It is a
    cross-entropy, not the entropy of the training text, so that it compares with a validation loss.
    """
    counts = np.bincount(train, minlength=vocab) + 1
    return float(-np.log(counts / counts.sum())[validation].mean())


@dataclass(frozen=True, eq=False)
class Windows:
    """Sliding windows of seq_len + 1 tokens, cut into global batches epoch after epoch.

    Windows start at 0, stride, 2 * stride, ... as long as a whole one remains; the few tokens after
    the last are not seen. With stride <= seq_len every earlier token but the first is a label.
    """

    tokens: Tokens
    seq_len: int
    stride: int
    seed: int | None
    """Fixes the order of every epoch; None: the order of the text, the same each epoch."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "stride"):
            size = getattr(self, name)
            require(size >= 1, f"windows.{name}: must be at least 1, got {size}")
        tokens, window = len(self.tokens), self.seq_len + 1
        require(tokens >= window, f"windows: {tokens} tokens are fewer than one window of seq_len + 1 = {window}")

    @property
    def count(self) -> int:
        """Windows an epoch."""
        return (len(self.tokens) - self.seq_len - 1) // self.stride + 1

    def global_batch(self, step: int, global_batch_size: int) -> tuple[Batch, Batch]:
        """The ids and labels of step `step` (from 0), each a new [B, seq_len] array.

        Takes windows step * B to step * B + B - 1 of the endless sequence of epochs, so a batch may
        end one epoch and begin the next. Depends on nothing but the seed, the step and B.
        """
        require(step >= 0, f"step: must not be negative, got {step}")
        require(global_batch_size >= 1, f"global batch: must be at least 1 sequence, got {global_batch_size}")
        epochs, places = np.divmod(step * global_batch_size + np.arange(global_batch_size), self.count)
        windows = np.concatenate([self._order(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()])
        rows = self.tokens[windows[:, None] * self.stride + np.arange(self.seq_len + 1)].astype(np.int64)
        return rows[:, :-1].copy(), rows[:, 1:].copy()

    def _order(self, epoch: int) -> Batch:
        return np.arange(self.count) if self.seed is None else _shuffled(self.seed, epoch, self.count)


def train_windows(data: TokenData, recipe: Recipe, seq_len: int) -> Windows:
    """Windows over the training text, recipe.stride apart (0: seq_len), shuffled by recipe.seed.

    Raises SpecError for a text shorter than one window.
    """
    _require_window(data, data.train, "training", seq_len)
    return Windows(data.train, seq_len, recipe.stride or seq_len, recipe.seed)


def validation_windows(data: TokenData, recipe: Recipe, seq_len: int, global_batch_size: int) -> Windows:
    """Windows over the held-out text, end to end and in its order; its first recipe.validation_batches batches.

    Raises SpecError for a held-out text that cannot fill those batches: no window counts twice.
    """
    _require_window(data, data.validation, "held-out", seq_len)
    windows = Windows(data.validation, seq_len, seq_len, None)
    need, most = recipe.validation_batches * global_batch_size, windows.count // global_batch_size
    require(
        need <= windows.count,
        f"recipe.validation_batches: {recipe.validation_batches} batches of {global_batch_size} sequences need {need}"
        f" windows, but the held-out {len(data.validation)} tokens make {windows.count} of seq_len({seq_len}) + 1;"
        f" at most {most}, or give a longer text",
    )
    return windows


def rank_slice(ids: Batch, data_rank: int, data_ranks: int, micro_batches: int) -> Batch:
    """The rows of a global batch that one data rank takes: [B, s] -> [micro_batches, micro_batch, s], a view.

    Rank r takes the r-th run of B / data_ranks rows, micro-batch m the m-th run within it, so all
    ranks and micro-batches together take every row exactly once.

    Raises SpecError for a batch that does not divide, or a rank outside [0, data_ranks).
    """
    require(data_ranks >= 1, f"data_ranks: must be at least 1, got {data_ranks}")
    require(micro_batches >= 1, f"workload.micro_batches: must be at least 1, got {micro_batches}")
    require(0 <= data_rank < data_ranks, f"data_rank: {data_rank} is not one of the {data_ranks} ranks from 0")
    batch, seq_len = ids.shape
    parts = data_ranks * micro_batches
    require(
        batch >= parts and batch % parts == 0,
        f"global batch: {batch} sequences do not divide into data_ranks({data_ranks})"
        f" * micro_batches({micro_batches}) = {parts} equal parts; use a multiple of {parts}",
    )
    return ids.reshape(data_ranks, micro_batches, batch // parts, seq_len)[data_rank]


def _require_window(data: TokenData, tokens: Tokens, part: str, seq_len: int) -> None:
    require(
        len(tokens) > seq_len,
        f"recipe.data: {data.path!r} ({part} part) holds {len(tokens)} tokens, fewer than one window of seq_len + 1"
        f" = {seq_len + 1}; give a longer text or a smaller workload.seq_len",
    )


# A memo of a pure function: two epochs, for a batch that straddles them.
@lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, count: int) -> Batch:
    """A permutation of [0, count) that only the seed and the epoch decide."""
    # Sorting the bit generator's raw stream, which numpy keeps stable for good; Generator.permutation it may change.
    keys = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(count)
    order = np.argsort(keys, kind="stable")
    order.flags.writeable = False
    return order


def _frozen(tokens: Tokens) -> Tokens:
    tokens.flags.writeable = False
    return tokens


def _digest(corpus_sha256: str, train: Tokens, validation: Tokens) -> str:
    # The ids alone would not do: two tokenizers may give the same ids to different texts.
    digest = hashlib.sha256(f"{corpus_sha256} {len(train)}\n".encode())
    for part in (train, validation):
        digest.update(part.astype("<i4").tobytes())
    return digest.hexdigest()


def case_data(case: Case) -> TokenData:
    """The case's corpus in ids that its model's vocabulary does not reserve. Raises SpecError as `load_data`."""
    return load_data(case.recipe, case.model.vocab - case.model.reserved_ids)


def check_data(case: Case) -> TokenData:
    """Read a case's corpus and cut its windows here, so that bad input is refused before any rank starts.

    Raises SpecError as `load_data`, `train_windows` and `validation_windows` do.
    """
    data, tokens = case_data(case), task_of(case.model).window(case)
    train_windows(data, case.recipe, tokens)
    batches = case.recipe.validation_batches
    if batches:
        size = case.workload.micro_batch * case.layout.data_ranks
        validation_windows(data, case.recipe, tokens, size).global_batch(batches - 1, size)
    return data


def made_up_examples(case: Case, step: int, rows: int) -> Examples:
    """So many rows of the case's task on random tokens, of the sizes that a text's would have: for what depends on
    nothing but sizes."""
    task = task_of(case.model)
    tokens = task.window(case)
    vocab, size = case.model.vocab - case.model.reserved_ids, (rows + 1) * tokens + 1
    text = np.random.default_rng(step).integers(vocab, size=size, dtype=np.int32)
    return task.examples(case, Windows(text, tokens, tokens, case.recipe.seed), step, rows)
