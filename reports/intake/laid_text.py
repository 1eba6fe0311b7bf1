"""A measurement beside its estimate, as a person and as a program reads it."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from reports.compare import Peak
from reports.intake.laid import Laid
from reports.tables import add_column, cell, framed
from reports.text import plural
from suite.record import Quantity
from suite.stats import relative_error
from suite.units import NOT_KNOWN, bytes_text, count_text, percent_text, seconds_text


def print_laid(laid: Laid, console: Console) -> None:
    """What was measured beside what is predicted for it, a line each."""
    table = framed(f"{laid.reading.source} beside the estimate of {laid.case.label}")
    for heading, right in (("quantity", False), ("rank", True), ("predicted", True), ("measured", True)):
        add_column(table, heading, right=right)
    add_column(table, "error")
    for row in _lines(laid):
        table.add_row(*map(cell, row))
    console.print(table)
    if laid.reading.reason:
        outcome = laid.measurement.outcome
        console.print(cell(f"{outcome}: {laid.reading.reason}; what was measured ends there", "yellow"))


def _lines(laid: Laid) -> list[tuple[str, str, str, str, str]]:
    lines = [_peak_line(rank, peak) for rank, peak in laid.peaks.items()]
    for found in laid.reserved:
        upper = "" if found.upper is None else f" (at most {bytes_text(found.upper)})"
        lines.append(
            (
                "reserved by torch's allocator",
                str(found.rank),
                bytes_text(found.predicted) + upper,
                bytes_text(found.measured),
                percent_text(found.error, signed=True),
            )
        )
    speed = laid.comparison.speed
    if speed.step is not None:
        predicted, measured = speed.predicted_seconds, speed.measured_seconds
        spread = f" (IQR {percent_text(speed.step.spread, 1)}, {plural(speed.step.count, 'step')})"
        error = percent_text(speed.error, signed=True)
        lines.append(("step", "all", seconds_text(predicted), seconds_text(measured) + spread, error))
        rates = (speed.predicted_tokens_per_second, speed.tokens_per_second)
        told, found_rate = (NOT_KNOWN if value is None else f"{count_text(value)} tokens/s" for value in rates)
        lines.append(("throughput", "all", told, found_rate, percent_text(relative_error(*rates), signed=True)))
    for part in (each for each in laid.parts if each.predicted or each.measured):
        pair = (seconds_text(part.predicted), seconds_text(part.measured))
        lines.append((f"  {part.part.replace('_', ' ')}", "", *pair, percent_text(part.error, signed=True)))
    if laid.reading.overlapped_seconds:
        lines.append(
            ("  communication that is hidden", "", NOT_KNOWN, seconds_text(laid.reading.overlapped_seconds), "")
        )
    return lines


def _peak_line(rank: int, peak: Peak) -> tuple[str, str, str, str, str]:
    sides = (peak.predicted, peak.measured)
    texts = [f"{bytes_text(side.bytes)} at {side.moment}" if side else NOT_KNOWN for side in sides]
    return ("peak allocated", str(rank), texts[0], texts[1], percent_text(peak.error, signed=True))


def laid_mapping(laid: Laid) -> dict[str, Any]:
    """`import --json` of a measurement: bytes, seconds, tokens/s; errors are (predicted - measured) / measured."""
    speed = laid.comparison.speed
    return {
        "source": laid.reading.source,
        "case_id": laid.case.case_id,
        "case": laid.case.to_mapping(),
        "outcome": laid.measurement.outcome.value,
        "reason": laid.measurement.reason,
        "peaks": [{"rank": rank, **_peak_mapping(peak)} for rank, peak in laid.peaks.items()],
        "reserved": [
            {
                "rank": found.rank,
                "predicted_bytes": found.predicted,
                "upper_bytes": found.upper,
                "measured_bytes": found.measured,
                "error": found.error,
                "below_upper": found.is_below_upper,
            }
            for found in laid.reserved
        ],
        "active_bytes": {
            str(sample.rank): sample.value for sample in laid.measurement.samples if sample.quantity is Quantity.ACTIVE
        },
        "rows": [
            {
                "quantity": row.quantity.value,
                "component": row.component and row.component.value,
                "rank": row.rank,
                "moment": row.moment and row.moment.value,
                "predicted": row.predicted,
                "measured": row.measured,
                "error": row.error,
            }
            for row in laid.rows
        ],
        "step": None
        if speed.step is None
        else {
            "steps": speed.step.count,
            "predicted_seconds": speed.predicted_seconds,
            "measured_seconds": speed.measured_seconds,
            "iqr_seconds": speed.step.iqr,
            "noisy": speed.is_noisy,
            "error": speed.error,
            "predicted_tokens_per_second": speed.predicted_tokens_per_second,
            "tokens_per_second": speed.tokens_per_second,
        },
        "parts": [
            {
                "part": part.part.value,
                "predicted_seconds": part.predicted,
                "measured_seconds": part.measured,
                "error": part.error,
            }
            for part in laid.parts
        ],
        "hidden_communication_seconds": laid.reading.overlapped_seconds,
        "notes": list(laid.notes),
    }


def _peak_mapping(peak: Peak) -> dict[str, Any]:
    sides = {"predicted": peak.predicted, "measured": peak.measured}
    found: dict[str, Any] = {
        name: {"bytes": side.bytes, "moment": side.moment.value} if side else None for name, side in sides.items()
    }
    return {**found, "error": peak.error}
