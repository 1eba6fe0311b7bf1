"""Choices of a layout among published rows: runs of one model, number of GPUs and tokens a step."""

from __future__ import annotations

from collections.abc import Iterable

from reports.ranking import Candidate, Entry, Ranking, rankings_of
from suite.published import PublishedRow

#: what the runs of a choice have in common: model, GPUs, tokens of a step
COMMON = ("layers", "hidden", "heads", "vocab", "seq_len", "gpus", "global_batch", "recompute_kind", "precision_kind")


def rank_choices(timed: Iterable[tuple[PublishedRow, float]]) -> tuple[Ranking[PublishedRow], ...]:
    """Rows of measured step times with their predicted seconds -> the choices among them, a source at a time.

    Rows of a choice share every cell of COMMON and their source. Those with one layout only are no choice.
    """
    return rankings_of(
        Entry(
            row.family,
            tuple(row.text(name) for name in COMMON),
            _label(row),
            Candidate(row, row.row_id, layout_text(row), row.published, predicted),
        )
        for row, predicted in timed
        if row.quantity == "step_seconds" and row.published and row.text("global_batch")
    )


def _label(row: PublishedRow) -> str:
    return f"{row.text('layers')}x{row.text('hidden')} on {row.text('gpus')} GPUs, batch {row.text('global_batch')}"


def layout_text(row: PublishedRow) -> str:
    """The layout in letters."""
    return " ".join(f"{name}{row.text(name)}" for name in ("dp", "tp", "pp") if row.text(name)) + (
        f", micro-batch {row.text('micro_batch')}"
    )
