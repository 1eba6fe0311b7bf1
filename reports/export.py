"""A run's reports written beside its records, whole or not at all, and its comparison as JSON-ready data."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from reports.compare import CaseComparison, Comparison, Instant, Run
from reports.factors import FACTORS
from reports.markdown import markdown_report
from reports.page import render_page
from reports.peers_text import peers_mapping
from reports.run_ranking import run_ranking, run_ranking_mapping
from reports.serving_summary import serving_summary
from reports.serving_tables import COLUMNS, serving_columns, serving_mapping, summary_mapping
from reports.summary import RunComparison, compare_run, errors_mapping
from reports.text import plain
from reports.traced import beyond_scalars
from suite.files import write_whole
from suite.record import Quantity

_IDENTITY = ("case_id", "case", "ranks", "outcome", "reason")
_PEAK = ("peak_predicted_bytes", "peak_measured_bytes", "peak_error", "peak_moment")
_STATE = ("state_rows", "state_rows_exact")
PAGE, MARKDOWN, TABLE = "report.html", "report.md", "cases.csv"


def write_report(run: Run, folder: Path) -> tuple[Path, Path]:
    """Write report.html, report.md and cases.csv into `folder`; returns the paths of the first two.

    All are rendered before any is written, and each takes its place in one step: a reader never meets half a
    page. OSError where the folder cannot be made or written.
    """
    comparison = compare_run(run)
    page, markdown = render_page(comparison), markdown_report(comparison)
    table = cases_csv(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / TABLE, table)
    return write_whole(folder / PAGE, page), write_whole(folder / MARKDOWN, markdown)


def cases_csv(comparison: RunComparison) -> str:
    """A row a case: its settings, its peak predicted and measured, and the largest difference at any moment."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([*_IDENTITY, *FACTORS, *_PEAK, "largest_moment_difference_bytes", *_STATE, *COLUMNS])
    for case in comparison.cases:
        peak, differences = case.peak, [row.difference for row in case.totals if row.difference is not None]
        writer.writerow(
            [
                *(
                    case.case.case_id,
                    plain(case.case.label),
                    case.case.layout.world_size,
                    case.status,
                    plain(case.reason),
                ),
                *(plain(value_of(case.case)) for value_of in FACTORS.values()),
                *(int(side.bytes) if side else "" for side in (peak.predicted, peak.measured)),
                "" if peak.error is None else f"{peak.error:.3e}",
                peak.measured.moment.value if peak.measured else "",
                int(max(differences, key=abs)) if differences else "",
                *(len(case.state_rows), sum(row.is_exact for row in case.state_rows)),
                *serving_columns(case.serving),
            ]
        )
    return lines.getvalue()


def run_mapping(comparison: RunComparison) -> dict[str, Any]:
    """The comparison as `--json` prints it: the summary, and an object a case."""
    return {
        "run": comparison.run.name,
        "suite": comparison.run.suite,
        "summary": {
            "cases": len(comparison.cases),
            "outcomes": comparison.outcomes,
            "peak_memory_error": errors_mapping(comparison.peak),
            "step_time_error": errors_mapping(comparison.step_time),
            "state_rows": len(comparison.state_rows),
            "state_rows_exact": comparison.state_exact,
            "traced_cases": len(comparison.traced),
            "trace_error": errors_mapping(comparison.trace),
            "trace_rows_beyond_scalars": len(beyond_scalars(comparison.traced_rows)),
            "untraced": comparison.untraced,
            "bytes_sent_rows": len(comparison.sent_rows),
            "bytes_sent_rows_exact": comparison.sent_exact,
            "largest_loss_difference": comparison.loss_spread.relative if comparison.loss_spread else None,
            "ranking": run_ranking_mapping(run_ranking(comparison)),
            "serving": summary_mapping(serving_summary(comparison)),
        },
        "cases": [case_mapping(case) for case in comparison.cases],
        "peers": peers_mapping(comparison),
    }


def case_mapping(case: CaseComparison) -> dict[str, Any]:
    """Outcome, and predicted / measured / error for each quantity and component (of the measured peak)."""
    peak, instant = case.peak, case.peak.measured or case.peak.predicted
    mapping: dict[str, Any] = {
        "case_id": case.case.case_id,
        "case": case.case.label,
        "world_size": case.case.layout.world_size,
        "outcome": case.status,
        "reason": case.reason,
        "peak_memory_bytes": {
            "predicted": peak.predicted.bytes if peak.predicted else None,
            "measured": peak.measured.bytes if peak.measured else None,
            "error": peak.error,
            "predicted_at": _instant(peak.predicted),
            "measured_at": _instant(peak.measured),
        },
        "components_bytes": {
            row.component.value: _pair(row) for row in (case.components_at(instant) if instant else ()) if row.component
        },
        "state_rows": len(case.state_rows),
        "state_rows_exact": sum(row.is_exact for row in case.state_rows),
        "trace": _trace(case),
        "bytes_sent": _sent(case),
    }
    whole_job = {row.quantity: row for row in case.rows if row.quantity is not Quantity.MEMORY}
    for quantity in (Quantity.STEP_TIME, Quantity.THROUGHPUT):
        mapping[quantity.value] = _pair(whole_job.get(quantity))
    mapping["step_seconds"]["iqr"] = case.speed.step.iqr if case.speed.step else None
    mapping["step_seconds"]["noisy"] = case.speed.is_noisy
    mapping["mfu"] = {
        "predicted": case.speed.predicted.mfu if case.speed.predicted else None,
        "measured": case.speed.mfu,
    }
    mapping["loss_nats"] = case.curve.final
    mapping["validation_loss_nats"] = case.curve.final_validation
    mapping["serving"] = serving_mapping(case.serving)
    return mapping


def _instant(instant: Instant | None) -> dict[str, Any] | None:
    return {"rank": instant.rank, "moment": instant.moment.value} if instant else None


def _trace(case: CaseComparison) -> dict[str, Any] | None:
    """Bytes that the formulas give and that the trace finds, by rank and moment, or why there is no trace; null where
    none was asked for."""
    if not (case.traced or case.result.untraced):
        return None
    totals = [
        {
            "rank": row.rank,
            "moment": row.moment and row.moment.value,
            "predicted": row.predicted,
            "traced": row.measured,
        }
        for row in case.traced
    ]
    return {"reason": case.result.untraced, "totals_bytes": totals}


def _sent(case: CaseComparison) -> dict[str, Any]:
    """Of the rank that sends most in a step: bytes sent in all, and each collective's bytes sent, payload and calls."""
    total = case.sent
    mapping: dict[str, Any] = {**_pair(total), "rank": total.rank if total else None, "collectives": {}}
    for row in case.traffic:
        if total and row.rank == total.rank and row.collective:
            mapping["collectives"].setdefault(row.collective.value, {})[row.quantity.value] = _pair(row)
    return mapping


def _pair(row: Comparison | None) -> dict[str, Any]:
    if row is None:
        return {"predicted": None, "measured": None, "error": None}
    return {"predicted": row.predicted, "measured": row.measured, "error": row.error}
