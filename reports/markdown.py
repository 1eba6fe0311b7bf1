"""A short report for a pull request, in GitHub's Markdown. Names and reasons are escaped, never markup."""

from __future__ import annotations

import re

from reports.compare import CaseComparison
from reports.peers_text import HEADINGS, NOTE, peers_rows
from reports.ranking_text import ranking_table
from reports.run_ranking import run_ranking
from reports.serving_tables import serving_tables
from reports.summary import RunComparison
from reports.text import plain, shorten
from reports.wording import instant_bytes, moments_text, sentences
from suite.units import bytes_text, count_text, number_text, percent_text, seconds_text

_HEADINGS = ("case", "peak predicted", "measured", "error", "moment", "step", "tokens/s", "loss", "outcome")
_REASON_LIMIT = 300


def markdown_report(comparison: RunComparison) -> str:
    """The report's text: summary, one row a case, reasons of the cases that did not end well."""
    run = comparison.run
    lines = [f"# Shardscope: {escape(run.suite)}", ""]
    lines += [f"Run {escape(run.name)}, {escape(run.created)}", ""]
    lines += [f"- {escape(sentence)}" for sentence in sentences(comparison)]
    is_served = any(case.serving for case in comparison.cases)
    lines += _served(comparison) if is_served else _trained(comparison)
    if len(comparison.opened) < len(comparison.cases):
        rest = len(comparison.cases) - len(comparison.opened)
        lines += ["", f"{count_text(rest)} more cases, whose predicted peaks are nearer, are in `cases.csv`."]
    lines += [*_sent(comparison), *_ranked(comparison), *_peers(comparison)]
    if comparison.unfinished:
        lines += ["", "## Not measured", ""]
        lines += [_failure(case) for case in comparison.unfinished]
    lines += ["", _SERVED_FOOT if is_served else _FOOT, ""]
    return "\n".join(lines)


def escape(text: object) -> str:
    """`text` on one line, with everything that Markdown or HTML would act on escaped; links and mentions stay dead."""
    safe = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    safe = re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", safe)
    # a zero-width joint keeps GitHub from linking an address or calling a person
    return safe.replace("@", "@&#8203;").replace("://", ":&#8203;//").replace("www.", "www&#8203;.")


_WHERE = "Every term is in `report.html`, every sample in `records.jsonl`."
_FOOT = (
    "Predicted: a sum of formulas. Measured: real training, the allocator's peak on the"
    f" fullest rank; step time is the median after warm-up. {_WHERE}"
)
_SERVED_FOOT = (
    "Predicted: a sum of formulas. Measured: real answers, the bytes that the allocator gave the cache on the fullest"
    f" rank; times are medians after the first repetition. {_WHERE}"
)


def _trained(comparison: RunComparison) -> list[str]:
    """The table of cases."""
    lines = ["", _row(_HEADINGS), _row(["---", *["---:"] * 3, "---", *["---:"] * 3, "---"])]
    return [*lines, *(_row([escape(cell) for cell in _cells(case)]) for case in comparison.opened)]


def _served(comparison: RunComparison) -> list[str]:
    """The tables of served cases."""
    lines = []
    for shown in serving_tables(comparison):
        lines += ["", f"## {escape(shown.title)}", "", _row(shown.headings)]
        lines += [_row(["---", *["---:"] * (len(shown.headings) - 1)])]
        lines += [_row([escape(cell) for cell in row]) for row in shown.rows]
    return lines


def _ranked(comparison: RunComparison) -> list[str]:
    """The table of choices between layouts; nothing for a run without."""
    ranking = run_ranking(comparison)
    if ranking is None:
        return []
    shown = ranking_table(ranking)
    lines = ["", f"## {escape(shown.title)}", "", _row(shown.headings), _row(["---"] * len(shown.headings))]
    return [*lines, *(_row([escape(cell) for cell in row]) for row in shown.rows)]


def _sent(comparison: RunComparison) -> list[str]:
    """The table of bytes sent; nothing for a run that sends none."""
    if not comparison.senders:
        return []
    lines = ["", "## Bytes sent in a step, rank that sends most", ""]
    lines += [_row(("case", "predicted", "measured", "error")), _row(["---", *["---:"] * 3])]
    for case in comparison.senders:
        row = case.sent
        if row:
            error = "exact" if row.is_exact else percent_text(row.error, signed=True)
            cells = (case.case.label, bytes_text(row.predicted), bytes_text(row.measured), error)
            lines.append(_row([escape(cell) for cell in cells]))
    return lines


def _peers(comparison: RunComparison) -> list[str]:
    """What other tools say of the same cases; nothing where none was asked."""
    rows = peers_rows(comparison)
    if not rows:
        return []
    lines = ["", "## Other tools on the same measured runs", "", escape(NOTE), ""]
    lines += [_row(("case", "tool", *HEADINGS)), _row(["---", "---", *["---:"] * 4])]
    return [*lines, *(_row([escape(cell) for cell in row]) for row in rows)]


def _cells(case: CaseComparison) -> tuple[str, ...]:
    noisy = " (noisy)" if case.speed.is_noisy else ""
    return (
        case.case.label,
        instant_bytes(case.peak.predicted),
        instant_bytes(case.peak.measured),
        percent_text(case.peak.error, signed=True),
        moments_text(case),
        seconds_text(case.speed.measured_seconds) + noisy,
        count_text(case.speed.tokens_per_second),
        number_text(case.curve.final),
        case.status,
    )


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _failure(case: CaseComparison) -> str:
    reason = shorten(plain(case.reason), _REASON_LIMIT) or "no measurement"
    return f"- **{escape(case.status)}** {escape(case.case.label)}: {escape(reason)}"
