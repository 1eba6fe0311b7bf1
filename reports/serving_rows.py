"""A served case: its cache by formula and by allocator, the times of its answers, and what they are worth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reports.comparison import Comparison
from reports.speed import slowest
from suite.cache_shape import compute_dtype, stored_dtype
from suite.case import Case
from suite.record import Component, Measurement, Quantity, ServingEstimate
from suite.stats import Summary, relative_error, summarize

#: quantities of a cache's bytes
BYTES = (Quantity.CACHE, Quantity.CACHE_READ)
#: quantities that are measured and not predicted
ANSWERS = (
    Quantity.TOKENS_MADE, Quantity.TOKENS_DIFFER, Quantity.LOGIT_DIFFERENCE, Quantity.EXACT_LOSS, Quantity.CACHED_LOSS,
)  # fmt: skip

_Key = tuple[Quantity, int, Component | None]
_ORDER = {component: place for place, component in enumerate((None, *Component))}


@dataclass(frozen=True)
class Timing:
    """Seconds, predicted and measured. All ranks answer together, so that the slowest counts; the first repetition is
    dropped."""

    predicted: float | None
    measured: Summary | None

    @property
    def median(self) -> float | None:
        """Median of what was measured."""
        return self.measured.median if self.measured else None

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured."""
        return relative_error(self.predicted, self.median)

    @property
    def is_noisy(self) -> bool:
        """Do the readings scatter too much to be trusted?"""
        return bool(self.measured and self.measured.is_noisy)


@dataclass(frozen=True)
class ServingComparison:
    """Everything a report says about a served case, where it ended well; of another what is predicted."""

    case: Case
    rows: tuple[Comparison, ...]  # CACHE and CACHE_READ of each rank: the total (component None), then its components
    prefill: Timing  # until every sequence has its first token
    decode: Timing  # from one token to the next of all of them
    answers: Mapping[Quantity, float]  # those of ANSWERS that were measured
    basis: str = ""  # where the predicted times come from, or why there are none

    def fullest(self, quantity: Quantity) -> Comparison | None:
        """The total of the rank that has most."""
        totals = [row for row in self.rows if row.quantity is quantity and row.component is None]
        return max(totals, key=lambda row: row.measured or row.predicted or 0.0, default=None)

    def both(self, quantity: Quantity) -> tuple[Comparison, ...]:
        """Rows by rank and component of which both sides are known."""
        found = (row for row in self.rows if row.quantity is quantity and row.component is not None)
        return tuple(row for row in found if row.predicted is not None and row.measured is not None)

    @property
    def tokens_per_second(self) -> float | None:
        """Of all answers together, while they are made; a prompt's beams make one answer."""
        prompts = self.case.workload.micro_batch * self.case.layout.data_ranks
        return prompts / self.decode.median if self.decode.median else None

    @property
    def is_exact(self) -> bool:
        """Are entries kept as they were computed?"""
        return stored_dtype(self.case) == compute_dtype(self.case)

    @property
    def all_rows(self) -> tuple[Comparison, ...]:
        """Bytes, times and what the answers are worth."""
        times = ((Quantity.PREFILL_TIME, self.prefill), (Quantity.DECODE_TIME, self.decode))
        return (
            *self.rows,
            *(Comparison(quantity, None, None, None, found.predicted, found.median) for quantity, found in times),
            *(Comparison(quantity, None, None, None, None, value) for quantity, value in self.answers.items()),
        )


def serving_of(
    case: Case, estimate: ServingEstimate | None, measurement: Measurement | None
) -> ServingComparison | None:
    """The two paths of a served case joined; None for a case that is trained."""
    if not case.serves:
        return None
    made = decode_steps(case)
    return ServingComparison(
        case=case,
        rows=_byte_rows(estimate, measurement),
        prefill=_timing(estimate.prefill_seconds if estimate else None, measurement, Quantity.PREFILL_TIME, 1),
        decode=_timing(estimate.decode_seconds if estimate else None, measurement, Quantity.DECODE_TIME, made),
        answers=_answers(measurement),
        basis=estimate.basis if estimate else "",
    )


def decode_steps(case: Case) -> int:
    """Of one repetition: every token of an answer but the first."""
    return (case.serving.new_tokens or 1) - 1


def _byte_rows(estimate: ServingEstimate | None, measurement: Measurement | None) -> tuple[Comparison, ...]:
    terms = estimate.cache if estimate else ()
    samples = measurement.samples if measurement else ()
    predicted = _summed(((term.quantity, term.rank, term.component), term.nbytes) for term in terms)
    measured = _summed(
        ((sample.quantity, sample.rank, sample.component), sample.value)
        for sample in samples
        if sample.quantity in BYTES
    )
    keys = sorted(predicted.keys() | measured.keys(), key=lambda key: (BYTES.index(key[0]), key[1], _ORDER[key[2]]))
    return tuple(
        Comparison(quantity, component, rank, None, _side(predicted, key), _side(measured, key))
        for key in keys
        for quantity, rank, component in [key]
    )


def _summed(pairs: Iterable[tuple[_Key, float]]) -> dict[_Key, float]:
    """Bytes by key, and of each rank the total."""
    table: dict[_Key, float] = defaultdict(float)
    for (quantity, rank, component), nbytes in pairs:
        table[quantity, rank, component] += nbytes
        table[quantity, rank, None] += nbytes
    return dict(table)


def _side(table: Mapping[_Key, float], key: _Key) -> float | None:
    """A component that is absent where its rank's total is known is nothing."""
    return table.get(key, 0.0 if (*key[:2], None) in table else None)


def _timing(predicted: float | None, measurement: Measurement | None, quantity: Quantity, warmup: int) -> Timing:
    return Timing(predicted, summarize(slowest(measurement, quantity), warmup))


def _answers(measurement: Measurement | None) -> dict[Quantity, float]:
    """Tokens that differ are summed over the ranks that say so, of everything else the furthest counts."""
    found = {quantity: measurement.values(quantity) for quantity in ANSWERS} if measurement else {}
    return {
        quantity: sum(values) if quantity is Quantity.TOKENS_DIFFER else max(values)
        for quantity, values in found.items()
        if values
    }
