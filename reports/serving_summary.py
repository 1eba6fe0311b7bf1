"""Served cases of a run in a few numbers, and in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from reports.serving_rows import ServingComparison, Timing
from reports.summary import Errors, RunComparison, errors_of
from reports.text import plural
from suite.cache_shape import compute_dtype
from suite.record import Quantity
from suite.spec import Precision
from suite.units import count_text, number_text, percent_text


@dataclass(frozen=True)
class ServingSummary:
    """Statistics over a run's served cases."""

    cases: tuple[ServingComparison, ...]

    def rows(self, quantity: Quantity) -> int:
        """Rows of bytes by rank and component with both sides."""
        return sum(len(case.both(quantity)) for case in self.cases)

    def exact(self, quantity: Quantity) -> int:
        """How many of them are equal to the byte."""
        return sum(row.is_exact for case in self.cases for row in case.both(quantity))

    @cached_property
    def prefill(self) -> Errors | None:
        """Errors of the time to the first token."""
        return errors_of([case.prefill.error for case in self.cases])

    @cached_property
    def decode(self) -> Errors | None:
        """Errors of the time from token to token."""
        return errors_of([case.decode.error for case in self.cases])

    @property
    def compared(self) -> tuple[ServingComparison, ...]:
        """Cases whose answers were held to those without a cache."""
        return tuple(case for case in self.cases if Quantity.TOKENS_DIFFER in case.answers)

    @property
    def same(self) -> int:
        """How many of those with an exact cache made every token that the model makes without one."""
        return sum(case.is_exact and not case.answers[Quantity.TOKENS_DIFFER] for case in self.compared)


def serving_summary(comparison: RunComparison) -> ServingSummary | None:
    """Of the run's served cases; None where there are none."""
    cases = tuple(case.serving for case in comparison.cases if case.serving)
    return ServingSummary(cases) if cases else None


def serving_sentences(summary: ServingSummary) -> tuple[str, ...]:
    """Bytes, answers, losses and times, a sentence each; none of what was not measured."""
    said = (_bytes_sentence(summary), _answers_sentence(summary), _rounding_sentence(summary), _loss_sentence(summary))
    return tuple(sentence for sentence in (*said, _time_sentence(summary)) if sentence)


def _bytes_sentence(summary: ServingSummary) -> str:
    stored, read = Quantity.CACHE, Quantity.CACHE_READ
    if not summary.rows(stored):
        return "No cache was measured."
    return (
        f"Caches, by rank and component: {count_text(summary.exact(stored))} of {count_text(summary.rows(stored))} rows"
        f" of what is stored and {count_text(summary.exact(read))} of {count_text(summary.rows(read))} rows of what a"
        " decode step reads equal to the byte."
    )


def _answers_sentence(summary: ServingSummary) -> str:
    cases = [case for case in summary.compared if case.is_exact]
    if not cases:
        return ""
    fp32 = [case for case in cases if case.case.workload.precision is Precision.FP32]
    rest = [case for case in cases if case not in fp32]
    parts = [f"{_same_text(group)} in {name}" for group, name in ((fp32, "fp32"), (rest, "16 bits")) if group]
    ties = ", where two words may all but tie," if any(case.answers[Quantity.TOKENS_DIFFER] for case in rest) else ""
    return (
        f"Exact caches: {' and '.join(parts)}{ties} made every token that the same model makes without a"
        f" cache{_logits(cases)}."
    )


def _same_text(cases: Sequence[ServingComparison]) -> str:
    same = sum(not case.answers[Quantity.TOKENS_DIFFER] for case in cases)
    return f"{count_text(same)} of {plural(len(cases), 'case')}"


def _rounding_sentence(summary: ServingSummary) -> str:
    cases = [case for case in summary.compared if not case.is_exact]
    if not cases:
        return ""
    differ = sum(case.answers[Quantity.TOKENS_DIFFER] for case in cases)
    made = sum(case.case.workload.micro_batch * case.answers[Quantity.TOKENS_MADE] for case in cases)
    return (
        f"Caches that round: {count_text(differ)} of {count_text(made)} tokens in {plural(len(cases), 'case')} differ"
        f" from those without a cache{_logits(cases)}."
    )


def _logits(cases: Sequence[ServingComparison]) -> str:
    """How far logits lie apart, by what the models compute in: what is rounding in 16 bits is a fault in 32."""
    furthest: dict[str, float] = {}
    for case in cases:
        apart, name = case.answers.get(Quantity.LOGIT_DIFFERENCE), compute_dtype(case.case).label
        if apart is not None:
            furthest[name] = max(apart, furthest.get(name, apart))
    parts = [f"{number_text(apart, 2)} in {name}" for name, apart in furthest.items()]
    return f"; logits lie at most {' and '.join(parts)} apart" if parts else ""


def _loss_sentence(summary: ServingSummary) -> str:
    pairs = [
        (case.answers[Quantity.CACHED_LOSS] - case.answers[Quantity.EXACT_LOSS], case)
        for case in summary.cases
        if case.answers.keys() >= {Quantity.CACHED_LOSS, Quantity.EXACT_LOSS}
    ]
    if not pairs:
        return ""
    apart, case = max(pairs, key=lambda pair: pair[0])
    return (
        f"Held-out text read through the cache costs at most {number_text(apart, 2)} nats a token more than without one"
        f" ({case.case.label}, {number_text(case.answers[Quantity.EXACT_LOSS])} without)."
    )


def _time_sentence(summary: ServingSummary) -> str:
    parts = [
        f"{words} is off by {percent_text(errors.median_absolute, 1)} in median and"
        f" {percent_text(errors.worst, 1, signed=True)} at worst"
        for words, errors in (("to the first token", summary.prefill), ("from token to token", summary.decode))
        if errors
    ]
    if not parts:
        return "No case has both a predicted and a measured time of its answers."
    timings: list[Timing] = [timing for case in summary.cases for timing in (case.prefill, case.decode)]
    noisy = sum(timing.is_noisy for timing in timings)
    note = f"; {plural(noisy, 'row')} scattered too much to lean on" if noisy else ""
    return f"Predicted time {', '.join(parts)}{note}."
