"""Served cases in figures: bytes of each cache by component; times are in figure_decode."""

from __future__ import annotations

from collections.abc import Sequence

from reports.compare import CaseComparison
from reports.figure_decode import decode_charts, short_label
from reports.figure_stacks import Stack, StackRow, stacks_svg
from reports.serving_rows import ServingComparison
from reports.summary import RunComparison
from reports.svg import Chart
from reports.text import plain
from suite.record import Quantity
from suite.units import percent_text

Served = tuple[CaseComparison, ServingComparison]


def serving_charts(comparison: RunComparison) -> list[Chart]:
    """A chart of bytes and what there is of times, for every model that was served."""
    models: dict[str, list[Served]] = {}
    for case in comparison.opened:
        if case.serving:
            models.setdefault(case.case.model.name, []).append((case, case.serving))
    found = []
    for place, (name, served) in enumerate(models.items()):
        timed = [answers for _, answers in served if answers.decode.median]
        found += [_bytes_chart(name, served, f"cache-{place}"), *decode_charts(name, timed, f"decode-{place}")]
    return [chart for chart in found if chart]


def _bytes_chart(model: str, cases: Sequence[Served], key: str) -> Chart | None:
    """Stored bytes of every case's fullest rank, predicted above measured."""
    known = [(case, found) for case, found in cases if found.fullest(Quantity.CACHE)]
    if not known:
        return None
    rows = [_bytes_row(case, found) for case, found in known]
    limit = max(stack.total or 0 for row in rows for stack in row.stacks) or 1.0
    svg = stacks_svg(rows, key, f"Predicted and measured bytes of the caches of {plain(model)}, by component", limit)
    caption = (
        "What the fullest rank stores when the answers are whole. Keys stand for latents where attention is latent;"
        " host: what the host keeps for the device."
    )
    return Chart(key, f"Cache by component: {plain(model)}", caption, svg)


def _bytes_row(case: CaseComparison, found: ServingComparison) -> StackRow:
    total = found.fullest(Quantity.CACHE)
    assert total
    parts = [
        row for row in found.rows if row.quantity is Quantity.CACHE and row.rank == total.rank and row.component
    ]  # fmt: skip
    predicted = tuple((row.component, row.predicted or 0.0) for row in parts if row.component)
    measured = tuple((row.component, row.measured or 0.0) for row in parts if row.component)
    note = "exact" if total.is_exact else percent_text(total.error, signed=True) if case.is_ok else case.status
    stacks = (Stack("predicted", total.predicted, predicted), Stack("measured", total.measured, measured))
    return StackRow(short_label(case.case), note, stacks)
