"""The comparison of two runs as JSON-ready data."""

from __future__ import annotations

from typing import Any

from reports.compare import CaseComparison
from reports.regress.pair import PairComparison, Row, Side
from reports.regress.surroundings import commit_of
from reports.regress.text import definitions, note_lines


def pair_mapping(found: PairComparison) -> dict[str, Any]:
    """The comparison as `--json` prints it."""
    return {
        "a": _side_mapping(found.before),
        "b": _side_mapping(found.after),
        "environment": [
            {"name": each.name, "a": each.before, "b": each.after, "is_machine": each.is_machine}
            for each in found.surroundings
        ],
        "alpha": found.limits.alpha,
        "least": found.limits.least,
        "adjustment": "holm",
        "shared_cases": found.shared,
        "counts": {verdict.value: count for verdict, count in found.counts.items()},
        "prediction_counts": {verdict.value: count for verdict, count in found.prediction_counts.items()},
        "outcomes": [
            {
                "case_id": each.case.case_id,
                "case": each.case.label,
                "a": each.before,
                "b": each.after,
                "reason": each.reason,
                "verdict": each.verdict.value,
            }
            for each in found.outcomes
        ],
        "rows": [row_mapping(row) for row in found.worst_first],
        "only_a": [_case_mapping(case) for case in found.only_before],
        "only_b": [_case_mapping(case) for case in found.only_after],
        "notes": note_lines(found),
        "definitions": definitions(found),
    }


def row_mapping(row: Row) -> dict[str, Any]:
    """One row; values in the quantity's own unit, changes and intervals as fractions."""
    found = row.judgement
    interval = found.interval
    return {
        "case_id": row.case.case_id,
        "case": row.case.label,
        "quantity": found.measure.name,
        "group": found.measure.group.value,
        "better": found.measure.better.value,
        "a": found.before,
        "b": found.after,
        "difference": found.after - found.before,
        "change": found.change,
        "change_interval": [interval.low, interval.high] if interval else None,
        "needed_change": found.needed,
        "u": found.test.u if found.test else None,
        "p": found.test.p if found.test else None,
        "p_is_exact": found.test.is_exact if found.test else None,
        "p_adjusted": found.p,
        "cliffs_delta": found.test.delta if found.test else None,
        "readings": list(found.readings),
        "launches": list(found.launches),
        "verdict": found.verdict.value,
        "why": found.why,
    }


def _side_mapping(side: Side) -> dict[str, Any]:
    run = side.run.run
    return {
        "run": run.name,
        "suite": run.suite,
        "created": run.created,
        "commit": commit_of(run),
        "more": [each.run.name for each in side.more],
    }


def _case_mapping(case: CaseComparison) -> dict[str, Any]:
    return {"case_id": case.case.case_id, "case": case.case.label, "outcome": case.status}
