"""Answering prompts: they are read, then a token of each is made a pass, until the answers are whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from suite.caches.base import Cache, CacheFull
from suite.caches.core import through
from suite.case import Case
from suite.generation.beam import Beams
from suite.generation.sampling import chooser
from suite.generation.texts import CachedText, Text, WholeText
from suite.models.decoder_module import Decoder
from suite.serving import Sampling


@dataclass(frozen=True)
class Answer:
    """What was made of n prompts; less than was asked for only where the cache was full."""

    tokens: Tensor
    """[n, made], int64; of beams the likeliest"""
    asked: int
    """tokens that were to be made"""
    logits: Tensor | None = None
    """[n, made, V] in fp32, each what its token was chosen of; None for beams"""
    scores: Tensor | None = None
    """[n], of beams: the sum of the answer's log-probabilities"""
    full: str = ""
    """why it ended early: what the cache says; empty where it is whole"""

    @property
    def made(self) -> int:
        """Tokens of each answer."""
        return self.tokens.shape[1]

    @property
    def is_whole(self) -> bool:
        """Is there nothing missing?"""
        return self.made == self.asked


#: told after every token that is made
Tick = Callable[[], None]


def _silent() -> None:
    """Nobody listens."""


def generate(model: Decoder, case: Case, cache: Cache, ids: Tensor, lengths: Sequence[int]) -> Answer:
    """Answers to prompts through a cache. ids [n, s] end together: prompt i is the last lengths[i] of its row."""
    pads = padding(case, ids, lengths)
    with through(model, cache, case.cache.latent_form), torch.no_grad():
        return answered(CachedText(model, cache, pads, case.serving.prefill_tokens), case, ids)


def generate_without_cache(model: Decoder, case: Case, ids: Tensor, lengths: Sequence[int]) -> Answer:
    """The same answers, the whole text read again for each token."""
    with torch.no_grad():
        return answered(WholeText(model, padding(case, ids, lengths)), case, ids)


def padding(case: Case, ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """Tokens in front of every sequence that are none of its own, [n * copies]."""
    pads = torch.tensor([ids.shape[1] - length for length in lengths], device=ids.device)
    return pads.repeat_interleave(case.serving.copies)


def answered(text: Text, case: Case, ids: Tensor, tick: Tick = _silent) -> Answer:
    """Read prompts [n, s] into a text of n * copies sequences and make the case's tokens. What is drawn depends on the
    recipe's seed."""
    if case.serving.sampling is Sampling.BEAM:
        return _searched(text, case, ids, tick)
    asked = _asked(case)
    choose = chooser(case.serving, torch.Generator(ids.device).manual_seed(case.recipe.seed))
    tokens, seen, full = [ids[:, :0]], [], ""
    try:
        logits = text.read(ids)
        while True:
            seen.append(logits)
            tokens.append(choose(logits).unsqueeze(-1))
            tick()
            if len(seen) == asked:
                break
            logits = text.read(tokens[-1])
    except CacheFull as error:
        full = str(error)
    return Answer(torch.cat(tokens, dim=1), asked, torch.stack(seen, dim=1) if seen else None, full=full)


def _searched(text: Text, case: Case, ids: Tensor, tick: Tick) -> Answer:
    """Beam search: a prompt's beams are neighbours, and the cache follows them as they are kept and dropped."""
    prompts, copies, asked = len(ids), case.serving.copies, _asked(case)
    beams, full = Beams.begun(prompts, copies, ids.device), ""
    try:
        logits = text.read(ids.repeat_interleave(copies, dim=0))
        while True:
            beams, rows = beams.extended(logits)
            tick()
            if beams.tokens.shape[-1] == asked:
                break
            text.reorder(rows)
            logits = text.read(beams.tokens[:, :, -1].reshape(-1, 1))
    except CacheFull as error:
        full = str(error)
    return Answer(beams.tokens[:, 0], asked, scores=beams.scores[:, 0], full=full)


def _asked(case: Case) -> int:
    assert case.serving.new_tokens is not None  # it is served
    return case.serving.new_tokens
