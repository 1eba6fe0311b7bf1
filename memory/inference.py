"""What a rank holds when a model answers: weights, the key-value cache, what prefill and decoding need in passing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from memory.caches.model import cache_terms
from memory.estimate import backend_of, threads_of
from memory.labels import WalkRules
from memory.walk import Walker
from parallelism.schedules.ledgers import ledger_of_stages, stages_of_place
from suite.cache import CacheSpec, LatentForm
from suite.case import Case
from suite.cpu_workspace import has_tiles
from suite.layout import Recompute
from suite.models.latent_shape import Latent
from suite.models.ledgers import ledger_of
from suite.models.served import weight_bytes
from suite.operators import Array, Ledger, Segment
from suite.parse import require
from suite.record import CacheTerm, Component, Quantity
from suite.serving import Serving
from suite.serving_rules import context_tokens
from suite.share import share_of
from suite.spec import AttentionKernel, Precision, Workload
from suite.tape import BF16_POLICY, FP32, Numerics

SCORE_BYTES = 4  # softmax is taken in fp32
TOKEN_BYTES = 8  # int64
_IN_BLOCK = re.compile(r"blocks\.\d+\.", flags=re.ASCII)
#: what a token leaves, however the cache is laid out
ELEMENTS = (Component.KEYS, Component.VALUES, Component.SCALES)


class Phase(StrEnum):
    """When a rank holds so much."""

    LOADED = "loaded"  # weights and buffers, before the first request
    PREFILL = "prefill"  # highest instant while the prompts are read
    DECODE = "decode"  # highest instant while one more token is made of each, the cache full


@dataclass(frozen=True, slots=True)
class InferenceTerm:
    """So many bytes at a phase, why, and by whose word."""

    phase: Phase
    name: str
    nbytes: int
    formula: str
    source: str


def _buffers(buffers: Iterable[Array]) -> list[InferenceTerm]:
    """What is no weight and is kept: a term for all blocks' of a kind, and one for each that stands alone."""
    kinds: dict[tuple[str, str], list[Array]] = {}
    for item in buffers:
        kinds.setdefault((_IN_BLOCK.sub("blocks.*.", item.name), item.formula), []).append(item)
    return [
        InferenceTerm(
            Phase.LOADED, name, sum(item.nbytes for item in found),
            formula if len(found) == 1 else f"{len(found)}*({formula})", "module buffer",
        )
        for (name, formula), found in kinds.items()
    ]  # fmt: skip


@dataclass(frozen=True)
class InferenceModel:
    """A case answered instead of trained: micro_batch prompts of seq_len tokens, then serving.new_tokens of each.

    In flight at once: while the prompts are read, `pass_tokens` tokens of every one of the micro_batch prompts (all of
    them, or serving.prefill_tokens at a time); while answers are made, one token of every sequence, of which beam
    search has several a prompt. Counted: weights in the compute type, buffers, token ids, every term of the case's
    cache that the device holds, the forward pass's tensors as torch frees them without autograd, the last token's
    logits and their fp32 copy. Not counted: what the fused kernel needs for itself over a long cache on CUDA, the
    places of the entries of a plain cache (8 bytes each, which an engine need not keep), the old array beside a new one
    of a cache that grows, blocks on the host, sampling, the device's context; of prompts that queries in the latent
    space read, which are wider than the ledger's: queries, sums and a copy of the entries.
    """

    case: Case

    def __post_init__(self) -> None:
        require(self.case.serves, "serving.new_tokens: missing; give the tokens that are made of each prompt")

    def terms(self, rank: int = 0) -> tuple[InferenceTerm, ...]:
        """Every term of every phase on one rank."""
        weights = self._weights(rank)
        held = [*weights, *self._cache(rank)]
        loaded = [self._at(Phase.LOADED, term) for term in weights]
        prefill = [*(self._at(Phase.PREFILL, term) for term in held), *self._passing(rank, Phase.PREFILL)]
        decode = [*(self._at(Phase.DECODE, term) for term in held), *self._passing(rank, Phase.DECODE)]
        return tuple(term for term in (*loaded, *prefill, *decode) if term.nbytes)

    def total_bytes(self, phase: Phase, rank: int = 0) -> int:
        """Bytes that a rank holds at the highest instant of a phase."""
        return sum(term.nbytes for term in self.terms(rank) if term.phase is phase)

    def peak_bytes(self, rank: int = 0) -> int:
        """Bytes at the highest instant of all."""
        sums = dict.fromkeys(Phase, 0)
        for term in self.terms(rank):
            sums[term.phase] += term.nbytes
        return max(sums.values())

    def cache_bytes_per_token(self, rank: int = 0) -> int:
        """Bytes that one more entry of one sequence takes on a rank, scales included: 2 L k d elements in the cache's
        type, or L (d_c + d_rope) where attention is latent. A window that is full forgets as much."""
        case = self.case
        lone = replace(
            case, model=replace(case.decoder, window=None), serving=Serving(new_tokens=1),
            workload=replace(case.workload, seq_len=1, micro_batch=1),
            cache=CacheSpec(case.cache.cache_dtype, case.cache.quant_group, cache_tokens=1),
        )  # fmt: skip
        return sum(term.nbytes for term in _stored(lone, rank) if term.component in ELEMENTS)

    @property
    def pass_tokens(self) -> int:
        """Tokens of each prompt that one forward pass reads."""
        prompt = self.case.workload.seq_len
        return min(self.case.serving.prefill_tokens or prompt, prompt)

    @cached_property
    def _numerics(self) -> Numerics:
        """Weights are loaded in the type that they compute in."""
        return FP32 if self.case.workload.precision is Precision.FP32 else BF16_POLICY

    @property
    def _context(self) -> int:
        return context_tokens(self.case)

    def _weights(self, rank: int) -> list[InferenceTerm]:
        """What is there before the first request."""
        ledger, compute = self._ledger(rank, 1, 1), self._numerics.weights.nbytes
        width = weight_bytes(self.case.model, compute)
        said = "in the compute type" if width == compute else "as released, scales and what stays in 16 bits left out"
        return [
            InferenceTerm(Phase.LOADED, "weights", ledger.parameters * width, f"parameters*{width}", said),
            *_buffers(ledger.buffers),
        ]

    def _cache(self, rank: int) -> list[InferenceTerm]:
        """What prompts and answers leave, a term a component; of a plain cache one term."""
        stored = [term for term in _stored(self.case, rank) if term.component is not Component.HOST]
        if self.case.cache == CacheSpec() and self.case.model.window is None:
            nbytes = sum(term.nbytes for term in stored if term.component in ELEMENTS)
            elements = "2*L*k*d" if self.case.model.latent is None else "L*(d_c+d_rope)"
            said = (f"{elements}*b*(s+n)*bytes", "arXiv:2305.13245; made whole")
            return [InferenceTerm(Phase.PREFILL, "key-value cache", nbytes, *said)]
        return [
            InferenceTerm(
                Phase.PREFILL, f"cache: {component}", sum(term.nbytes for term in found),
                " + ".join(dict.fromkeys(term.formula for term in found)),
                "; ".join(dict.fromkeys(term.source for term in found)),
            )
            for component in dict.fromkeys(term.component for term in stored)
            for found in [[term for term in stored if term.component is component]]
        ]  # fmt: skip

    def _passing(self, rank: int, phase: Phase) -> list[InferenceTerm]:
        """What a phase needs beside what is held: its tokens, its forward pass, its logits."""
        case, is_prefill = self.case, phase is Phase.PREFILL
        length = self.pass_tokens if is_prefill else 1
        batch = case.workload.micro_batch * (1 if is_prefill else case.serving.copies)
        formula = f"b*{'s' if length == case.workload.seq_len else 'chunk'}*8" if is_prefill else "b*s*8"
        terms = [
            InferenceTerm(phase, "token ids", batch * length * TOKEN_BYTES, formula, "int64"),
            InferenceTerm(
                phase, "forward pass", _forward_peak(self._ledger(rank, length, batch)),
                "highest instant of the walk, nothing kept", "torch frees a tensor with its last reader",
            ),
        ]  # fmt: skip
        if not is_prefill and case.model.latent is not None:
            return [*terms, self._reading_latents(case.model.latent, rank)]
        if case.workload.attention is AttentionKernel.EAGER:
            past = case.workload.seq_len - length if is_prefill else self._context
            compute, heads = self._numerics.compute.nbytes, share_of(case.layout, rank).rows(case.model.heads)
            scores = batch * length * heads * past * (compute + SCORE_BYTES)
            formula = f"b*a*{'chunk*(s-chunk)' if is_prefill else '(s+n)'}*({compute}+4)"
            terms.append(InferenceTerm(phase, "scores over the cache", scores, formula, "one query a head"))
        return terms

    def _reading_latents(self, latent: Latent, rank: int) -> InferenceTerm:
        """What a decode step makes of one layer's cache: keys and values of all heads where it is read plainly, scores
        and their successor where queries are absorbed."""
        heads, size = share_of(self.case.layout, rank).rows(self.case.model.heads), self._numerics.compute.nbytes
        key, value = latent.key_dim, latent.v_dim
        batch = self.case.workload.micro_batch * self.case.serving.copies
        if self.case.cache.latent_form is LatentForm.ABSORBED:
            widths = {"2*a": 2 * heads}
        else:
            copied = latent.kv_rank * (batch > 1)  # of several sequences the entries held are strided
            widths = {"(a*(d+v)+d_c)": heads * (key + value) + copied}
            widths |= {"a*(2*d+v)": heads * (2 * key + value)} if value < key else {}  # a padded copy of values
        letters = max(widths, key=widths.__getitem__)
        return InferenceTerm(
            Phase.DECODE, "attention to latents", batch * self._context * widths[letters] * size,
            f"b*(s+n)*{letters}*{size}", "arXiv:2405.04434, section 2.1.2",
        )  # fmt: skip

    def _ledger(self, rank: int, length: int, batch: int) -> Ledger:
        """A rank's segments over so many tokens of so many sequences, the head over the last token of each."""
        case = self.case
        whole = self._whole(rank, length, batch)
        if case.layout.pp > 1:
            whole = ledger_of_stages(case, whole, stages_of_place(case, case.layout.place("pp", rank)))
        return whole

    def _whole(self, rank: int, length: int, batch: int) -> Ledger:
        case = self.case
        workload = Workload(seq_len=length, micro_batch=batch, attention=case.workload.attention)
        return ledger_of(
            case.model, workload, Recompute(), self._numerics, backend_of(case), threads_of(case), has_tiles(),
            share_of(case.layout, rank),
        )  # fmt: skip

    @staticmethod
    def _at(phase: Phase, term: InferenceTerm) -> InferenceTerm:
        return replace(term, phase=phase)


def _stored(case: Case, rank: int) -> list[CacheTerm]:
    return [term for term in cache_terms(case, rank) if term.quantity is Quantity.CACHE]


def _forward_peak(ledger: Ledger) -> int:
    """Highest instant of a forward pass that keeps nothing, above what is held; the logits are the last token's."""
    level = peak = sum(array.nbytes for array in ledger.shared)
    walked: dict[int, tuple[int, int]] = {}  # blocks are one segment, placed often
    for placed in ledger.segments:
        segment = placed.segment
        if segment.name in ledger.loss:
            continue
        if id(segment) not in walked:
            walked[id(segment)] = _walk(segment)
        highest, net = walked[id(segment)]
        peak = max(peak, level + highest)
        level += net
    return max(peak, level + sum(_logits(ledger)))


def _walk(segment: Segment) -> tuple[int, int]:
    """(highest instant above the segment's start, what it leaves)."""
    walk, _ = Walker(segment, WalkRules()).run_forward(keeps=False)
    return walk.peak, walk.net


def _logits(ledger: Ledger) -> Iterable[int]:
    """The last token's logits and their fp32 copy, if the rank has the head."""
    for placed in ledger.segments:
        if placed.segment.name in ledger.loss:
            vocab = placed.segment.weights[0].shape[0].value
            batch = ledger.batch[0].shape[0].value
            nbytes = placed.segment.weights[0].dtype.nbytes
            yield batch * vocab * nbytes
            yield batch * vocab * SCORE_BYTES if nbytes != SCORE_BYTES else 0
