"""What a rank holds when a model answers: weights, the key-value cache, what prefill and decoding need in passing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from memory.estimate import backend_of, threads_of
from memory.kv_cache import kv_bytes_per_token, latent_bytes_per_token
from memory.labels import WalkRules
from memory.walk import Walker
from parallelism.schedules.ledgers import ledger_of_stages, stages_of_place
from suite.case import Case
from suite.cpu_workspace import has_tiles
from suite.layout import Recompute
from suite.models.ledgers import ledger_of
from suite.operators import Ledger
from suite.parse import require
from suite.serving_rules import context_tokens
from suite.share import share_of
from suite.spec import AttentionKernel, Precision, Workload
from suite.tape import BF16_POLICY, FP32, Numerics

SCORE_BYTES = 4  # softmax is taken in fp32
TOKEN_BYTES = 8  # int64


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


@dataclass(frozen=True)
class InferenceModel:
    """A case answered instead of trained: micro_batch prompts of seq_len tokens, then serving.new_tokens of each.

    Counted: weights in the compute type, buffers, token ids, a cache of prompt and answer allocated whole, the forward
    pass's tensors as torch frees them without autograd, the last token's logits and their fp32 copy. Not counted: what
    the fused kernel needs for itself over a long cache on CUDA, paging, sampling, the device's context.
    """

    case: Case

    def __post_init__(self) -> None:
        require(self.case.serves, "serving.new_tokens: missing; give the tokens that are made of each prompt")

    def terms(self, rank: int = 0) -> tuple[InferenceTerm, ...]:
        """Every term of every phase on one rank."""
        held = self._held(rank)
        loaded = [self._at(Phase.LOADED, term) for term in held if term.name != "key-value cache"]
        prefill = [*(self._at(Phase.PREFILL, term) for term in held), *self._passing(rank, Phase.PREFILL)]
        decode = [*(self._at(Phase.DECODE, term) for term in held), *self._passing(rank, Phase.DECODE)]
        return tuple(term for term in (*loaded, *prefill, *decode) if term.nbytes)

    def total_bytes(self, phase: Phase, rank: int = 0) -> int:
        """Bytes that a rank holds at the highest instant of a phase."""
        return sum(term.nbytes for term in self.terms(rank) if term.phase is phase)

    def peak_bytes(self, rank: int = 0) -> int:
        """Bytes at the highest instant of all."""
        return max(self.total_bytes(phase, rank) for phase in Phase)

    def cache_bytes_per_token(self, rank: int = 0) -> int:
        """Bytes that one token of one sequence adds on a rank, in the cache's type: 2 L k d; with latent attention
        L (d_c + d_rope), on every rank alike."""
        spec, layout, latent = self.case.model, self.case.layout, self.case.model.latent
        layers = sum(bool(placed.prefix) for placed in self._ledger(rank, 1).segments)
        if latent is not None:
            return latent_bytes_per_token(layers, latent.kv_rank, latent.rope_dim, self._numerics.compute.nbytes)
        return kv_bytes_per_token(layers, spec.kv_heads, spec.head_dim, self._numerics.compute.nbytes, layout.tp)

    @cached_property
    def _numerics(self) -> Numerics:
        """Weights are loaded in the type that they compute in."""
        return FP32 if self.case.workload.precision is Precision.FP32 else BF16_POLICY

    @property
    def _context(self) -> int:
        return context_tokens(self.case)

    def _held(self, rank: int) -> list[InferenceTerm]:
        """What is there in both phases."""
        workload, ledger = self.case.workload, self._ledger(rank, self.case.workload.seq_len)
        batch, width = workload.micro_batch, self._numerics.weights.nbytes
        cache = batch * self._context * self.cache_bytes_per_token(rank)
        first, elements = Phase.LOADED, "2*L*k*d" if self.case.model.latent is None else "L*(d_c+d_rope)"
        return [
            InferenceTerm(first, "weights", ledger.parameters * width, f"parameters*{width}", "in the compute type"),
            *(InferenceTerm(first, item.name, item.nbytes, item.formula, "module buffer") for item in ledger.buffers),
            InferenceTerm(first, "key-value cache", cache, f"{elements}*b*(s+n)*bytes", "arXiv:2305.13245; made whole"),
        ]  # fmt: skip

    def _passing(self, rank: int, phase: Phase) -> list[InferenceTerm]:
        """What a phase needs beside what is held: its tokens, its forward pass, its logits."""
        workload, spec, compute = self.case.workload, self.case.model, self._numerics.compute.nbytes
        length = workload.seq_len if phase is Phase.PREFILL else 1
        ledger, batch = self._ledger(rank, length), workload.micro_batch
        terms = [
            InferenceTerm(phase, "token ids", batch * length * TOKEN_BYTES, "b*s*8", "int64"),
            InferenceTerm(
                phase, "forward pass", _forward_peak(ledger), "highest instant of the walk, nothing kept",
                "torch frees a tensor with its last reader",
            ),
        ]  # fmt: skip
        if phase is Phase.DECODE and workload.attention is AttentionKernel.EAGER:
            scores = batch * share_of(self.case.layout, rank).rows(spec.heads) * self._context * (compute + SCORE_BYTES)
            terms.append(
                InferenceTerm(phase, "scores over the cache", scores, f"b*a*(s+n)*({compute}+4)", "one query a head")
            )
        return terms

    def _ledger(self, rank: int, length: int) -> Ledger:
        """A rank's segments over so many tokens, the head over the last of them."""
        case = self.case
        whole = self._whole(rank, length)
        if case.layout.pp > 1:
            whole = ledger_of_stages(case, whole, stages_of_place(case, case.layout.place("pp", rank)))
        return whole

    def _whole(self, rank: int, length: int) -> Ledger:
        case = self.case
        workload = Workload(seq_len=length, micro_batch=case.workload.micro_batch, attention=case.workload.attention)
        return ledger_of(
            case.model, workload, Recompute(), self._numerics, backend_of(case), threads_of(case), has_tiles(),
            share_of(case.layout, rank),
        )  # fmt: skip

    @staticmethod
    def _at(phase: Phase, term: InferenceTerm) -> InferenceTerm:
        return replace(term, phase=phase)


def _forward_peak(ledger: Ledger) -> int:
    """Highest instant of a forward pass that keeps nothing, above what is held; the logits are the last token's."""
    level = peak = sum(array.nbytes for array in ledger.shared)
    for placed in ledger.segments:
        if placed.segment.name in ledger.loss:
            continue
        walk, _ = Walker(placed.segment, WalkRules()).run_forward(keeps=False)
        peak = max(peak, level + walk.peak)
        level += walk.net
    return max(peak, level + sum(_logits(ledger)))


def _logits(ledger: Ledger) -> Iterable[int]:
    """The last token's logits and their fp32 copy, if the rank has the head."""
    for placed in ledger.segments:
        if placed.segment.name in ledger.loss:
            vocab = placed.segment.weights[0].shape[0].value
            batch = ledger.batch[0].shape[0].value
            nbytes = placed.segment.weights[0].dtype.nbytes
            yield batch * vocab * nbytes
            yield batch * vocab * SCORE_BYTES if nbytes != SCORE_BYTES else 0
