"""The serve pass of a rank: prompts answered for real. What the cache takes and gives, then how long answers take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from parallelism.serving.bytes import weighed
from parallelism.serving.losses import Losses
from parallelism.serving.model import served_model
from parallelism.serving.reads import CountedText, Reads
from suite.cache import CacheKind
from suite.cache_shape import cache_kind
from suite.caches.base import Cache
from suite.caches.build import build_cache
from suite.caches.core import through
from suite.case import Case
from suite.data import Windows, rank_slice
from suite.generation.loop import Answer, answered, generate_without_cache, padding
from suite.generation.sampling import chooser
from suite.generation.texts import CachedText, logits_of, within
from suite.ranklog import FailureKind, RankWriter
from suite.record import Component, Quantity, Sample
from suite.serving import Sampling
from suite.serving_lengths import prompt_lengths
from suite.serving_rules import kept_window

#: prompts are read so often, and the first of these times answered to the end: reports drop the first repetition
PREFILLS, ANSWERS = 6, 3
#: an answer of which no more tokens are read by a reference is made again without a cache, token by token; a longer
#: one is read again in one pass, since a token's logits do not depend on those behind it
REREAD_TOKENS = 2**14


class ServePass:
    """One rank's answers to its prompts: the first windows of the corpus, as long as the case has them."""

    def __init__(
        self, case: Case, rank: int, device: torch.device, mesh: DeviceMesh | None, windows: Windows,
        writer: RankWriter, losses: Losses,
    ) -> None:  # fmt: skip
        self.losses = losses
        self.case, self.rank, self.device, self.mesh, self.writer = case, rank, device, mesh, writer
        self.lengths = prompt_lengths(case)
        self.prompts = _prompts(case, rank, windows).to(device)
        self.pads = padding(case, self.prompts, self.lengths)
        self.model = served_model(case, mesh, device)

    def run(self) -> None:
        """All of it; where the cache is full before the answers are whole, what there was and that it was."""
        answer = self._observe()
        self._sample(Quantity.TOKENS_MADE, answer.made)
        if not answer.is_whole:
            words = f"the cache was full after {answer.made} of {answer.asked} tokens: {answer.full}"
            self.writer.failure(FailureKind.CACHE_FULL, words)
            return
        self._hold_to_no_cache(answer)
        for repetition in range(PREFILLS):
            self._time(repetition)
        if self.case.recipe.validation_batches and self.rank == 0:
            for quantity, loss in self.losses.of(self.case, self.device, self.writer.heartbeat).items():
                self._sample(quantity, loss)

    # --- bytes ------------------------------------------------------------------------------------------

    def _observe(self) -> Answer:
        """An answer under the allocator's recorder, every read of the cache counted."""
        reads = Reads()
        with weighed(self.device) as found:
            cache = build_cache(self.case, self.device, reads.around)
            text = CountedText(self.model, cache, self.pads, self.case.serving.prefill_tokens, reads)
            answer = self._answered(text, cache, self.case)
            held = cache.held()
            found.see(held)
        self.writer.heartbeat("answered")
        if answer.is_whole:
            self._write(Quantity.CACHE, found.nbytes)
            # beams that share pages read each of them once a beam by formula, and entries are counted once here
            if self.case.serving.copies == 1 or self.case.cache.page_tokens is None:
                self._write(Quantity.CACHE_READ, reads.nbytes(held))
        return answer

    def _write(self, quantity: Quantity, sizes: Mapping[Component, int]) -> None:
        for component, nbytes in sizes.items():
            self.writer.sample(Sample(quantity, nbytes, self.rank, component=component))

    def _answered(self, text: CachedText, cache: Cache, case: Case) -> Answer:
        with through(self.model, cache, self.case.cache.latent_form), torch.no_grad():
            return answered(text, case, self.prompts)

    # --- what the answers are worth ---------------------------------------------------------------------

    def _hold_to_no_cache(self, answer: Answer) -> None:
        """Tokens that differ from the model's without a cache, and how far its logits of the same text lie apart; the
        model sees no more than a window's cache does. Of sinks and blocks, which no mask of places is, neither."""
        if cache_kind(self.case) not in (CacheKind.FULL, CacheKind.WINDOW):
            return
        with within(self.model, kept_window(self.case)):
            self._compare(answer)
        self.writer.heartbeat("held to no cache")

    def _compare(self, answer: Answer) -> None:
        logits = None if answer.logits is None else self._logits_of(answer)
        if answer.logits is not None and logits is not None:
            self._sample(Quantity.LOGIT_DIFFERENCE, (answer.logits - logits).abs().max().item())
        expected = self._tokens_without_cache(logits)
        if self.case.layout.place("tp", self.rank) == 0:  # its neighbours have the same
            self._sample(Quantity.TOKENS_DIFFER, int((answer.tokens != expected).sum()))

    def _logits_of(self, answer: Answer) -> Tensor:
        """What the model without a cache says of the answer's tokens, in one pass over the whole text."""
        whole = torch.cat((self.prompts, answer.tokens[:, :-1]), dim=1)
        with torch.no_grad():
            return logits_of(self.model, whole, self.pads, answer.made)

    def _tokens_without_cache(self, logits: Tensor | None) -> Tensor:
        """The whole text read again for each token, or where that is long, each token chosen of those logits."""
        case, asked = self.case, self.case.serving.new_tokens or 0
        prompts, length = self.prompts.shape
        reread = prompts * case.serving.copies * sum(range(length, length + asked))
        if logits is None or reread <= REREAD_TOKENS or case.serving.sampling is Sampling.BEAM:
            return generate_without_cache(self.model, case, self.prompts, self.lengths).tokens
        choose = chooser(case.serving, torch.Generator(self.device).manual_seed(case.recipe.seed))
        return torch.stack([choose(each) for each in logits.unbind(1)], dim=1)

    # --- times ------------------------------------------------------------------------------------------

    def _time(self, repetition: int) -> None:
        """Seconds until every sequence has its first token, and then from token to token; nothing listens in."""
        case = self.case if repetition < ANSWERS else _first_token_of(self.case)
        cache = build_cache(self.case, self.device)
        text = CachedText(self.model, cache, self.pads, case.serving.prefill_tokens)
        instants: list[float] = []

        def tick() -> None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            instants.append(time.perf_counter())

        if self.mesh is not None:
            dist.barrier()
        with through(self.model, cache, self.case.cache.latent_form), torch.no_grad():
            tick()
            answered(text, case, self.prompts, tick)
        first, *rest = np.diff(instants).tolist()
        self._sample(Quantity.PREFILL_TIME, first, repetition)
        for step, seconds in enumerate(rest):
            self._sample(Quantity.DECODE_TIME, seconds, repetition * len(rest) + step)
        self.writer.heartbeat(f"timed {repetition + 1} of {PREFILLS}")

    def _sample(self, quantity: Quantity, value: float, index: int = 0) -> None:
        self.writer.sample(Sample(quantity, value, self.rank, index))


def _prompts(case: Case, rank: int, windows: Windows) -> Tensor:
    """The rank's prompts [micro_batch, seq_len], the same on all ranks that answer together."""
    layout = case.layout
    ids, _ = windows.global_batch(0, case.workload.micro_batch * layout.data_ranks)
    mine = rank_slice(ids, layout.data_rank(rank), layout.data_ranks, 1)[0]
    return torch.from_numpy(np.ascontiguousarray(mine))


def _first_token_of(case: Case) -> Case:
    return replace(case, serving=replace(case.serving, new_tokens=1))
