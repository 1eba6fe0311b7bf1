"""What the page's template loops over: the parts of a case's explanation, picked and ordered. No markup here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reports.compare import CaseComparison, Peak
from reports.rank_view import RankView, rank_views
from suite.collectives import Message
from suite.record import Quantity
from suite.units import bytes_text


@dataclass(frozen=True)
class CaseView:
    """A case, and what its explanation shows."""

    anchor: str
    comparison: CaseComparison
    ranks: tuple[tuple[int, Peak], ...]  # empty where there is one rank only
    views: tuple[RankView, ...]  # of the ranks, those together that are alike
    messages: tuple[Message, ...]  # of the rank that sends most, the largest first
    facts: tuple[tuple[str, str], ...]
    stderr: tuple[tuple[int, str], ...]


def case_view(comparison: CaseComparison, place: int, run_environment: Mapping[str, Any]) -> CaseView:
    """The view of a run's case number `place`."""
    measurement = comparison.result.measurement
    ranks = tuple((number, comparison.peak_of_rank(number)) for number in comparison.ranks)
    return CaseView(
        anchor=f"case-{place}",
        comparison=comparison,
        views=rank_views(comparison, f"case-{place}"),
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


def _messages(comparison: CaseComparison) -> tuple[Message, ...]:
    sent = comparison.sent
    rows = (row for found in comparison.result.traffic if sent and found.rank == sent.rank for row in found.messages)
    return tuple(sorted(rows, key=lambda row: -row.sent))


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
