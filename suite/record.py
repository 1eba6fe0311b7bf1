"""The vocabulary that estimates and measurements share, and the rows they are written in.

An Estimate is a ledger of Terms, a Measurement a list of raw Samples; both speak of a quantity, a
component, a moment of the training step and a rank, so that they can be joined. Bytes are bytes,
times are seconds, losses are nats a token; the unit is part of each quantity's name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from suite.collectives import Collective, Tally

SCHEMA_VERSION = 1


class Quantity(StrEnum):
    """What a number is a number of."""

    MEMORY = "memory_bytes"
    RESIDENT = "resident_bytes"  # RSS high-water: information only, malloc's reuse pollutes it
    RESERVED = "reserved_bytes"  # CUDA: highest of the step, what the caching allocator holds
    ACTIVE = "active_bytes"  # CUDA: highest of the step, blocks in use or waiting for a stream
    ALLOCATOR_RETRIES = "allocator_retries"  # CUDA: how often the allocator gave its cache back and tried again
    STEP_TIME = "step_seconds"
    THROUGHPUT = "tokens_per_second"
    MODEL_FLOPS = "model_flops"
    LOSS = "loss_nats"
    VALIDATION_LOSS = "validation_loss_nats"
    UNIGRAM_ENTROPY = "unigram_entropy_nats"
    GRADIENT_NORM = "gradient_norm"
    ROUTED_TOKENS = "routed_tokens"  # of a rank's in all timed steps to one expert; index: block x experts + expert
    RECEIVED_ROWS = "received_rows"  # by a rank's experts; index: micro-batch x blocks + block (suite/received.py)
    BYTES_SENT = "bytes_sent"  # a rank's share of a step's collectives (suite.collectives.sent_bytes)
    PAYLOAD = "payload_bytes"  # what a rank hands over to a step's collectives
    COLLECTIVE_CALLS = "collective_calls"
    CACHE = "cache_bytes"  # what a served model's cache holds when the answers are whole
    CACHE_READ = "cache_read_bytes"  # of it, what the last token of every sequence reads
    PREFILL_TIME = "prefill_seconds"  # until every sequence has its first token
    DECODE_TIME = "decode_seconds"  # until every sequence has one token more
    TOKENS_MADE = "tokens_made"  # a sequence, until its answer is whole or the cache full
    TOKENS_DIFFER = "tokens_differ"  # of all sequences, from what the same model makes without a cache
    LOGIT_DIFFERENCE = "logit_difference"  # furthest from the same model's without a cache
    EXACT_LOSS = "exact_loss_nats"  # held-out text, without a cache
    CACHED_LOSS = "cached_loss_nats"  # the same text, token by token through the cache


_BYTES = {Quantity.MEMORY, Quantity.RESIDENT, Quantity.RESERVED, Quantity.ACTIVE, Quantity.BYTES_SENT, Quantity.PAYLOAD}
_SECONDS = {Quantity.STEP_TIME, Quantity.PREFILL_TIME, Quantity.DECODE_TIME}
_NATS = {Quantity.LOSS, Quantity.VALIDATION_LOSS, Quantity.UNIGRAM_ENTROPY, Quantity.EXACT_LOSS, Quantity.CACHED_LOSS}
#: what a quantity's values are in; 1: a bare number
UNITS: dict[Quantity, str] = {
    **dict.fromkeys(Quantity, "1"),
    **dict.fromkeys((*_BYTES, Quantity.CACHE, Quantity.CACHE_READ), "B"),
    **dict.fromkeys(_SECONDS, "s"),
    **dict.fromkeys(_NATS, "nats a token"),
    Quantity.THROUGHPUT: "tokens/s",
    Quantity.MODEL_FLOPS: "FLOP",
}


class Component(StrEnum):
    """What a byte is for. Per rank, exclusive: the components of a moment sum to its total."""

    PARAMETERS = "parameters"
    BUFFERS = "buffers"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    COMMUNICATION = "communication"  # persistent buckets: what a strategy keeps for its collectives
    INPUTS = "inputs"
    ACTIVATIONS = "activations"  # made by the forward pass, kept for the backward pass
    LOSS = "loss"  # made by the head and the loss, kept for the backward pass
    GATHERED = "gathered"  # whole parameters that sharding gathers for a while, and its collectives' buffers
    TRANSIENTS = "transients"  # made and freed inside the phase: workspace, gradients of activations
    KEYS = "keys"  # of a served model's cache; latents where attention is latent
    VALUES = "values"  # rotated keys that heads share where attention is latent
    SCALES = "scales"  # and offsets of quantized keys and values
    TABLES = "tables"  # where tokens lie: positions, pages
    HOST = "host"  # blocks that the host keeps
    UNEXPLAINED = "unexplained"


class Moment(StrEnum):
    """Named moments of a step. `*_peak` and `loss` are the highest instant of their phase, the rest are levels.

    init            after the model is built and sharded, before the first step
    forward_peak    highest instant from the start of the step to the last block's output
    after_forward   the last hidden state exists, the head has not run
    loss            highest instant of the head and the loss
    backward_peak   highest instant of the backward pass
    after_backward  all gradients exist, clipping and the optimizer have not run
    optimizer_peak  highest instant of clipping and the optimizer step
    steady          after the gradients are dropped, between two steps
    """

    INIT = "init"
    FORWARD_PEAK = "forward_peak"
    AFTER_FORWARD = "after_forward"
    LOSS = "loss"
    BACKWARD_PEAK = "backward_peak"
    AFTER_BACKWARD = "after_backward"
    OPTIMIZER_PEAK = "optimizer_peak"
    STEADY = "steady"


#: what stands for the formula where only the sum was kept
SUMMED = "sum of its terms"
#: Components whose size is known to the byte before anything runs.
STATE = (Component.PARAMETERS, Component.BUFFERS, Component.GRADIENTS, Component.OPTIMIZER)


@dataclass(frozen=True, slots=True)
class Term:
    """One line of an estimate: so much of a quantity, for this reason, by this formula."""

    component: Component
    moment: Moment
    value: float
    formula: str
    source: str
    rank: int = 0
    quantity: Quantity = Quantity.MEMORY


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a rank holds at each moment of a step: a ledger of Terms; every total is a sum of them."""

    terms: tuple[Term, ...]
    rank: int = 0

    @cached_property
    def by_moment(self) -> dict[Moment, dict[Component, int]]:
        """Bytes per moment and component."""
        table: dict[Moment, dict[Component, int]] = {}
        for term in self.terms:
            row = table.setdefault(term.moment, defaultdict(int))
            row[term.component] += int(term.value)
        return {moment: dict(row) for moment, row in table.items()}

    def total_bytes(self, moment: Moment) -> int:
        """Bytes held at a moment."""
        return sum(self.by_moment[moment].values())

    @cached_property
    def peak_moment(self) -> Moment:
        """The moment that holds most; the earlier one if two hold the same."""
        return max(self.by_moment, key=self.total_bytes)

    @property
    def peak_bytes(self) -> int:
        """Bytes held at the largest moment of a step (`init` included)."""
        return self.total_bytes(self.peak_moment)

    def summed(self) -> MemoryEstimate:
        """The same with one term a component and moment: what a sweep of thousands keeps of each."""
        terms = [
            Term(component, moment, nbytes, SUMMED, "`estimate --explain` lists them", self.rank)
            for moment, row in self.by_moment.items()
            for component, nbytes in row.items()
        ]
        return MemoryEstimate(tuple(terms), self.rank)

    @property
    def is_summed(self) -> bool:
        """Are its terms sums alone?"""
        return all(term.formula == SUMMED for term in self.terms)


@dataclass(frozen=True)
class TimeEstimate:
    """How long one optimizer step takes. None where a rate is not known; never another device's.

    tflops_per_gpu and mfu count what a causal model needs, recomputation never; hfu counts that too.
    """

    step_seconds: float | None
    tokens_per_second: float | None
    tflops_per_gpu: float | None
    mfu: float | None  # FLOPs that a causal model needs
    hfu: float | None  # the same and what is recomputed
    parts_seconds: dict[str, float] = field(default_factory=dict)
    basis: str = ""  # where the rate comes from, in words
    mfu_full_attention: float | None = None  # as PaLM's: the masked half of attention counted too


@dataclass(frozen=True, slots=True)
class CacheTerm:
    """One line of a cache: so many bytes of a component on a rank, stored (CACHE) or read (CACHE_READ), and why."""

    component: Component
    nbytes: int
    formula: str
    source: str
    rank: int = 0
    quantity: Quantity = Quantity.CACHE


@dataclass(frozen=True)
class ServingEstimate:
    """What the formulas say of a served case: cache of every rank, and times (None where a rate is not known)."""

    cache: tuple[CacheTerm, ...]
    prefill_seconds: float | None = None
    decode_seconds: float | None = None  # of the middle token of the answers
    basis: str = ""  # where the rates come from, in words


class Outcome(StrEnum):
    """How a case ended. Failure is a result, never a gap."""

    OK = "ok"
    OOM = "oom"
    TIMEOUT = "timeout"  # ran past its deadline while making progress
    HANG = "hang"  # made no progress for the hang limit
    FAILED = "failed"
    CACHE_FULL = "cache_full"  # a served model's cache had no room for the next token
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Sample:
    """One raw reading on one rank. `index` is the step (or instant) it was taken at."""

    quantity: Quantity
    value: float
    rank: int
    index: int = 0
    component: Component | None = None
    moment: Moment | None = None
    collective: Collective | None = None


@dataclass(frozen=True)
class Measurement:
    """What a run of a case gave: its outcome, the reason where it is not ok, and the raw samples of all ranks."""

    case_id: str
    outcome: Outcome
    samples: tuple[Sample, ...] = ()
    reason: str = ""
    wall_seconds: float = 0.0
    stderr_tails: dict[int, str] = field(default_factory=dict)  # rank -> its last lines
    environment: dict[str, Any] = field(default_factory=dict)

    def values(
        self,
        quantity: Quantity,
        *,
        rank: int | None = None,
        component: Component | None = None,
        moment: Moment | None = None,
    ) -> list[float]:
        """Raw readings in order, filtered; None leaves that key open."""
        return [
            sample.value
            for sample in self.samples
            if sample.quantity is quantity
            and (rank is None or sample.rank == rank)
            and (component is None or sample.component is component)
            and (moment is None or sample.moment is moment)
        ]

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that left samples, ascending."""
        return tuple(sorted({sample.rank for sample in self.samples}))


def traffic_values(sums: Tally) -> dict[Quantity, float]:
    """A tally in the quantities that samples and reports speak of."""
    return {
        Quantity.BYTES_SENT: float(sums.sent),
        Quantity.PAYLOAD: float(sums.payload),
        Quantity.COLLECTIVE_CALLS: float(sums.count),
    }


def total(samples: Iterable[Sample]) -> float:
    """Sum of the samples' values."""
    return sum(sample.value for sample in samples)
