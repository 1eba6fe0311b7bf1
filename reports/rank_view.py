"""What the page shows of each rank of a case: its timeline, its components over the step, its terms moment by moment.
Ranks that are alike in every number share one view."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from reports.compare import CaseComparison, Comparison, Peak
from reports.figure_timeline import ranks_text, timeline_chart
from reports.svg import Chart
from suite.record import Component, MemoryEstimate, Moment, Term
from suite.timeline import Timeline


@dataclass(frozen=True)
class MatrixRow:
    """A component (None: the total) over the moments of a step; None where neither side knows the moment."""

    component: Component | None
    cells: tuple[Comparison | None, ...]


@dataclass(frozen=True)
class MomentTerms:
    """The terms of one moment, the largest first, and what they add up to."""

    moment: Moment
    total: Comparison | None
    terms: tuple[Term, ...]
    is_peak: bool  # of the rank's prediction


@dataclass(frozen=True)
class RankView:
    """One rank, or several that are alike."""

    anchor: str
    title: str
    ranks: tuple[int, ...]
    peak: Peak
    is_fullest: bool
    chart: Chart | None
    moments: tuple[Moment, ...]
    matrix: tuple[MatrixRow, ...]
    ledger: tuple[MomentTerms, ...]


def rank_views(case: CaseComparison, anchor: str) -> tuple[RankView, ...]:
    """The views of a case's ranks, in the order of their first rank; of estimates that kept sums alone (a sweep of
    thousands of cases) the fullest rank's."""
    instant = case.peak.measured or case.peak.predicted
    fullest = instant.rank if instant else None
    kept_terms = not all(estimate.is_summed for estimate in case.result.memory) or not case.result.memory
    return tuple(
        _view(case, ranks, f"{anchor}-rank-{ranks[0]}", fullest in ranks)
        for ranks in _alike(case)
        if kept_terms or fullest in ranks
    )


def _view(case: CaseComparison, ranks: tuple[int, ...], anchor: str, is_fullest: bool) -> RankView:
    rank = ranks[0]
    moments = tuple(moment for moment in Moment if case.memory(None, rank, moment))
    line = _timeline(case, rank)
    title = ranks_text(ranks)
    peak = case.peak_of_rank(rank)
    return RankView(
        anchor=anchor,
        title=f"{title[0].upper()}{title[1:]}",
        ranks=ranks,
        peak=peak,
        is_fullest=is_fullest,
        chart=timeline_chart(case, line, ranks, f"{anchor}-timeline") if line else None,
        moments=moments,
        matrix=tuple(_matrix(case, rank, moments)),
        ledger=tuple(_ledger(case, rank, peak)),
    )


def _alike(case: CaseComparison) -> Iterator[tuple[int, ...]]:
    """The ranks in groups: same terms, same timeline, same measured bytes."""
    groups: dict[object, list[int]] = {}
    for rank in case.ranks:
        estimate, line = _estimate(case, rank), _timeline(case, rank)
        terms = (
            tuple((term.component, term.moment, term.value, term.formula) for term in estimate.terms)
            if estimate
            else ()
        )
        drawn = (line.at, tuple(line.nbytes.items())) if line else ()
        real = tuple((row.component, row.moment, row.measured) for row in case.rows_of_rank(rank))
        groups.setdefault((terms, drawn, real), []).append(rank)
    return (tuple(ranks) for ranks in groups.values())


def _matrix(case: CaseComparison, rank: int, moments: tuple[Moment, ...]) -> Iterator[MatrixRow]:
    """A row a component that is ever there, the total last."""
    for component in (*Component, None):
        cells = tuple(case.memory(component, rank, moment) for moment in moments)
        if any(cell and (cell.predicted or cell.measured) for cell in cells):
            yield MatrixRow(component, cells)


def _ledger(case: CaseComparison, rank: int, peak: Peak) -> Iterator[MomentTerms]:
    estimate = _estimate(case, rank)
    for moment in Moment:
        terms = [term for term in estimate.terms if term.moment is moment and term.value] if estimate else []
        is_peak = bool(peak.predicted and peak.predicted.moment is moment)
        if terms and (is_peak or not estimate or not estimate.is_summed):  # of sums the matrix has the rest
            ordered = tuple(sorted(terms, key=lambda term: -term.value))
            yield MomentTerms(moment, case.memory(None, rank, moment), ordered, is_peak)


def _estimate(case: CaseComparison, rank: int) -> MemoryEstimate | None:
    return next((found for found in case.result.memory if found.rank == rank), None)


def _timeline(case: CaseComparison, rank: int) -> Timeline | None:
    return next((found for found in case.result.timelines if found.rank == rank), None)
