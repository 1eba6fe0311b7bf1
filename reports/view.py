"""What the page's template loops over: the parts of a case's explanation, picked and ordered. No markup here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reports.compare import CaseComparison, Comparison, Peak
from suite.collectives import Message
from suite.record import Component, MemoryEstimate, Moment, Quantity, Term
from suite.units import bytes_text


@dataclass(frozen=True)
class MatrixRow:
    """A component (None: the total) over the moments of a step; None where neither side knows the moment."""

    component: Component | None
    cells: tuple[Comparison | None, ...]


@dataclass(frozen=True)
class CaseView:
    """A case, and what its explanation shows."""

    anchor: str
    comparison: CaseComparison
    terms: tuple[Term, ...]  # of the predicted peak: the fullest rank at its fullest moment, largest first
    rank: int | None  # the rank the matrix shows
    moments: tuple[Moment, ...]
    matrix: tuple[MatrixRow, ...]
    ranks: tuple[tuple[int, Peak], ...]  # empty where there is one rank only
    messages: tuple[Message, ...]  # of the rank that sends most, the largest first
    facts: tuple[tuple[str, str], ...]
    stderr: tuple[tuple[int, str], ...]


def case_view(comparison: CaseComparison, place: int, run_environment: Mapping[str, Any]) -> CaseView:
    """The view of a run's case number `place`."""
    instant = comparison.peak.measured or comparison.peak.predicted
    rank = instant.rank if instant else None
    moments = () if rank is None else tuple(m for m in Moment if comparison.memory(None, rank, m))
    measurement = comparison.result.measurement
    ranks = tuple((number, comparison.peak_of_rank(number)) for number in comparison.ranks)
    return CaseView(
        anchor=f"case-{place}",
        comparison=comparison,
        terms=_peak_terms(comparison),
        rank=rank,
        moments=moments,
        matrix=tuple(_matrix(comparison, rank, moments)) if rank is not None else (),
        ranks=ranks if len(ranks) > 1 else (),
        messages=_messages(comparison),
        facts=tuple(_facts(comparison, run_environment)),
        stderr=tuple(sorted(measurement.stderr_tails.items())) if measurement else (),
    )


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as (key, text) pairs: {"cpu": {"cores": 2}} -> ("cpu.cores", "2"). Unknown facts are left out."""
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        elif name.endswith("_bytes") and isinstance(value, int | float):
            yield name.removesuffix("_bytes"), bytes_text(value)
        elif isinstance(value, list | tuple):
            yield name, ", ".join(str(item) for item in value)
        elif value is not None and value != "":
            yield name, str(value)


def _peak_terms(comparison: CaseComparison) -> tuple[Term, ...]:
    peak = comparison.peak.predicted
    estimate: MemoryEstimate | None = next(
        (found for found in comparison.result.memory if peak and found.rank == peak.rank), None
    )
    if estimate is None or peak is None:
        return ()
    terms = [term for term in estimate.terms if term.moment is peak.moment and term.value]
    return tuple(sorted(terms, key=lambda term: -term.value))


def _messages(comparison: CaseComparison) -> tuple[Message, ...]:
    sent = comparison.sent
    rows = (row for found in comparison.result.traffic if sent and found.rank == sent.rank for row in found.messages)
    return tuple(sorted(rows, key=lambda row: -row.sent))


def _matrix(comparison: CaseComparison, rank: int, moments: tuple[Moment, ...]) -> Iterator[MatrixRow]:
    """A row a component that is ever there, the total last."""
    for component in (*Component, None):
        cells = tuple(comparison.memory(component, rank, moment) for moment in moments)
        if any(cell and (cell.predicted or cell.measured) for cell in cells):
            yield MatrixRow(component, cells)


def _facts(comparison: CaseComparison, run_environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the case was, in full, and what about its surroundings differs from the run's."""
    case, measurement = comparison.case, comparison.result.measurement
    yield "case id", case.case_id
    yield "ranks", str(case.layout.world_size)
    yield "global batch", f"{case.global_batch} sequences, {case.tokens_per_step} tokens"
    for part, value in case.to_mapping().items():
        pairs = flatten(value) if isinstance(value, Mapping) else ()
        yield part, ", ".join(f"{key} {text}" for key, text in pairs)
    if measurement is None:
        return
    for quantity, name in ((Quantity.RESERVED, "reserved, largest"), (Quantity.RESIDENT, "resident, largest")):
        values = measurement.values(quantity)
        if values:
            yield name, f"{bytes_text(max(values))} (for information: no formula is compared with it)"
    if measurement.environment:
        known = dict(flatten(run_environment))
        differing = [f"{key} {text}" for key, text in flatten(measurement.environment) if known.get(key) != text]
        yield "environment", ", ".join(differing) or "as the run's"
