"""Served cases as tables of text, which the terminal and the pull-request report both print; and as JSON and CSV."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from typing import Any

from reports.compare import CaseComparison
from reports.comparison import Comparison
from reports.serving_rows import ServingComparison, Timing
from reports.serving_summary import ServingSummary
from reports.summary import RunComparison, errors_mapping
from suite.record import Quantity
from suite.units import NOT_KNOWN, bytes_text, count_text, number_text, percent_text, seconds_text

_SIDES = ("predicted", "measured", "error")


@dataclass(frozen=True)
class TextTable:
    """A table whose first column is the case's name. Cells under the headings of `words` are no numbers."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[str, ...] = ("case", "outcome")


def serving_tables(comparison: RunComparison) -> tuple[TextTable, ...]:
    """Bytes, answers and times of the served cases that reports open up."""
    served = [(case, case.serving) for case in comparison.opened if case.serving]
    made: tuple[tuple[str, tuple[str, ...], Callable[[CaseComparison, ServingComparison], tuple[str, ...]]], ...] = (
        ("cache of the fullest rank: stored, and read by the last token", _BYTES, _byte_cells),
        ("answers: beside the same model without a cache", _ANSWERS, _answer_cells),
        ("time to the first token, and from token to token", _TIMES, _time_cells),
    )
    return tuple(
        TextTable(title, ("case", *headings), tuple((case.case.label, *cells(case, found)) for case, found in served))
        for title, headings, cells in made
    )


_BYTES = (*(f"stored {side}" for side in _SIDES), *(f"read {side}" for side in _SIDES))
_ANSWERS = ("tokens each", "differ", "logits apart", "perplexity", "through the cache", "outcome")
_TIMES = (*(f"first {side}" for side in _SIDES), *(f"next {side}" for side in _SIDES), "tokens/s")


def _byte_cells(_: CaseComparison, found: ServingComparison) -> tuple[str, ...]:
    return (*_row_cells(found.fullest(Quantity.CACHE)), *_row_cells(found.fullest(Quantity.CACHE_READ)))


def _row_cells(row: Comparison | None) -> tuple[str, str, str]:
    if row is None:
        return NOT_KNOWN, NOT_KNOWN, NOT_KNOWN
    error = "exact" if row.is_exact else percent_text(row.error, signed=True)
    return bytes_text(row.predicted), bytes_text(row.measured), error


def _answer_cells(case: CaseComparison, found: ServingComparison) -> tuple[str, ...]:
    answers = found.answers
    losses = (answers.get(quantity) for quantity in (Quantity.EXACT_LOSS, Quantity.CACHED_LOSS))
    return (
        count_text(answers.get(Quantity.TOKENS_MADE)),
        count_text(answers.get(Quantity.TOKENS_DIFFER)),
        number_text(answers.get(Quantity.LOGIT_DIFFERENCE), 2),
        *(number_text(None if loss is None else exp(loss)) for loss in losses),
        case.status,
    )


def _time_cells(_: CaseComparison, found: ServingComparison) -> tuple[str, ...]:
    return (*_timing_cells(found.prefill), *_timing_cells(found.decode), count_text(found.tokens_per_second))


def _timing_cells(timing: Timing) -> tuple[str, str, str]:
    noisy = " noisy" if timing.is_noisy else ""
    return (
        seconds_text(timing.predicted), seconds_text(timing.median) + noisy, percent_text(timing.error, signed=True)
    )  # fmt: skip


# --- for programs --------------------------------------------------------------------------------------------


def summary_mapping(summary: ServingSummary | None) -> dict[str, Any] | None:
    """The run's served cases in a few numbers; null where there are none."""
    if summary is None:
        return None
    return {
        "cache_rows": summary.rows(Quantity.CACHE),
        "cache_rows_exact": summary.exact(Quantity.CACHE),
        "cache_read_rows": summary.rows(Quantity.CACHE_READ),
        "cache_read_rows_exact": summary.exact(Quantity.CACHE_READ),
        "compared_with_no_cache": len(summary.compared),
        "exact_caches": sum(case.is_exact for case in summary.compared),
        "exact_caches_with_the_same_tokens": summary.same,
        "prefill_time_error": errors_mapping(summary.prefill),
        "decode_time_error": errors_mapping(summary.decode),
    }


def serving_mapping(found: ServingComparison | None) -> dict[str, Any] | None:
    """A served case: bytes by quantity, rank and component (null: the total), times, what the answers are worth; null
    for one that is trained."""
    if found is None:
        return None
    return {
        "cache": [
            {
                "quantity": row.quantity.value,
                "rank": row.rank,
                "component": row.component and row.component.value,
                "predicted": row.predicted,
                "measured": row.measured,
                "error": row.error,
            }
            for row in found.rows
        ],
        Quantity.PREFILL_TIME.value: _timing_mapping(found.prefill),
        Quantity.DECODE_TIME.value: _timing_mapping(found.decode),
        "basis": found.basis,
        Quantity.THROUGHPUT.value: found.tokens_per_second,
        **{quantity.value: value for quantity, value in found.answers.items()},
    }


#: heading of a column of cases.csv -> its value of a served case
COLUMNS: dict[str, Callable[[ServingComparison], object]] = {
    "cache": lambda found: str(found.case.cache),
    "batch": lambda found: found.case.workload.micro_batch,
    "seq_len": lambda found: found.case.workload.seq_len,
    "new_tokens": lambda found: found.case.serving.new_tokens,
    "cache_predicted_bytes": lambda found: _whole(found.fullest(Quantity.CACHE), "predicted"),
    "cache_measured_bytes": lambda found: _whole(found.fullest(Quantity.CACHE), "measured"),
    "cache_read_predicted_bytes": lambda found: _whole(found.fullest(Quantity.CACHE_READ), "predicted"),
    "cache_read_measured_bytes": lambda found: _whole(found.fullest(Quantity.CACHE_READ), "measured"),
    "cache_rows": lambda found: len(found.both(Quantity.CACHE)),
    "cache_rows_exact": lambda found: sum(row.is_exact for row in found.both(Quantity.CACHE)),
    "tokens_differ": lambda found: found.answers.get(Quantity.TOKENS_DIFFER, ""),
    "prefill_predicted_seconds": lambda found: _or_empty(found.prefill.predicted),
    "prefill_measured_seconds": lambda found: _or_empty(found.prefill.median),
    "decode_predicted_seconds": lambda found: _or_empty(found.decode.predicted),
    "decode_measured_seconds": lambda found: _or_empty(found.decode.median),
}


def serving_columns(found: ServingComparison | None) -> list[object]:
    """A case's cells of COLUMNS, empty for one that is trained."""
    return [value_of(found) if found else "" for value_of in COLUMNS.values()]


def _whole(row: Comparison | None, side: str) -> object:
    value = getattr(row, side) if row else None
    return "" if value is None else int(value)


def _or_empty(value: float | None) -> object:
    return "" if value is None else f"{value:.6g}"


def _timing_mapping(timing: Timing) -> dict[str, Any]:
    found = timing.measured
    return {
        "predicted": timing.predicted,
        "measured": timing.median,
        "error": timing.error,
        "iqr": found.iqr if found else None,
        "readings": found.count if found else 0,
        "noisy": timing.is_noisy,
    }
