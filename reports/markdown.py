"""A short report for a pull request, in GitHub's Markdown. Names and reasons are escaped, never markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from reports.compare import CaseComparison
from reports.made_on import made_on
from reports.peers_text import HEADINGS, NOTE, peers_rows
from reports.ranking_text import ranking_table
from reports.run_ranking import run_ranking
from reports.serving_tables import serving_tables
from reports.summary import RunComparison
from reports.text import plain, plural, shorten
from reports.wording import sentences
from suite.units import NOT_KNOWN, bytes_text, count_text, number_text, percent_text, seconds_text

#: rows that a table shows, and from how many on it is folded: a comment is read between others
ROWS, FOLDED = 40, 12
_REASONS, _REASON_LIMIT = 10, 300
#: columns of words; all others are numbers, to the right
_WORDS = (
    "case", "tool", "outcome", "layout", "Pareto front", "winner", "with", "ties with it", "next",
    "lowest by prediction", "that held", "where", "choice", "predicted fastest", "measured fastest", "ranking",
)  # fmt: skip


def markdown_report(comparison: RunComparison) -> str:
    """The report's text: where it was made, summary, one row a case, reasons of the cases that did not end well.

    Every measured number has the prediction's error beside it. At most ROWS cases are shown, those that did not end
    well and those furthest off; about 60 lines in all.
    """
    run = comparison.run
    lines = [f"# Shardscope: {escape(run.suite)}", ""]
    lines += [f"Run {escape(run.name)}, {escape(run.created)}: {escape(made_on(run))}.", ""]
    lines += [f"- {escape(sentence)}" for sentence in sentences(comparison)]
    is_served = any(case.serving for case in comparison.cases)
    chosen = comparison.furthest(ROWS)
    headings, rows = _served(comparison, chosen) if is_served else _trained(chosen)
    lines += ["", *folded(plural(len(rows), "case"), headings, rows)]
    if len(chosen) < len(comparison.cases):
        rest = len(comparison.cases) - len(chosen)
        lines += ["", f"{count_text(rest)} more cases, whose predicted peaks are nearer, are in `cases.csv`."]
    lines += [*_ranked(comparison), *_peers(comparison), *_reasons(comparison)]
    lines += ["", _SERVED_FOOT if is_served else _FOOT, ""]
    return "\n".join(lines)


def escape(text: object) -> str:
    """`text` on one line, with everything that Markdown or HTML would act on escaped; links and mentions stay dead."""
    safe = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    safe = re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", safe)
    # a zero-width joint keeps GitHub from linking an address or calling a person
    return safe.replace("@", "@&#8203;").replace("://", ":&#8203;//").replace("www.", "www&#8203;.")


def table_lines(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table; the columns in which nothing is known are left out."""
    rows = list(rows)
    kept = [place for place in range(len(headings)) if not rows or any(_is_known(row[place]) for row in rows)]
    shown = [headings[place] for place in kept]
    lines = [_row(shown), _row(["---" if heading in _WORDS else "---:" for heading in shown])]
    return [*lines, *(_row([escape(row[place]) for place in kept]) for row in rows)]


def folded(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table that opens on a click where it has more than FOLDED rows."""
    return fold(title, table_lines(headings, rows)) if len(rows) > FOLDED else table_lines(headings, rows)


def fold(title: str, lines: Sequence[str]) -> list[str]:
    """Lines that open on a click."""
    return [f"<details><summary>{escape(title)}</summary>", "", *lines, "", "</details>"]


_WHERE = "Every term is in `report.html`, every sample in `records.jsonl`."
_FOOT = (
    "Errors: (predicted - measured) / measured. Predicted: a sum of formulas. Measured: real training, the allocator's"
    f" peak on the fullest rank; step time is the median after warm-up. {_WHERE}"
)
_SERVED_FOOT = (
    "Errors: (predicted - measured) / measured. Predicted: a sum of formulas. Measured: real answers, the bytes that"
    f" the allocator gave the cache on the fullest rank; times are medians after the first repetition. {_WHERE}"
)

_TRAINED = (
    "case", "peak predicted", "measured", "error", "step predicted", "measured", "error", "tokens/s", "sent predicted",
    "measured", "error", "loss", "outcome",
)  # fmt: skip


def _trained(cases: Sequence[CaseComparison]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Headings and rows of the table of cases."""
    return _TRAINED, [_cells(case) for case in cases]


def _cells(case: CaseComparison) -> tuple[str, ...]:
    peak, speed, sent = case.peak, case.speed, case.sent
    noisy = " (noisy)" if speed.is_noisy else ""
    return (
        case.case.label,
        bytes_text(peak.predicted.bytes if peak.predicted else None),
        bytes_text(peak.measured.bytes if peak.measured else None),
        percent_text(peak.error, signed=True),
        seconds_text(speed.predicted_seconds),
        seconds_text(speed.measured_seconds) + noisy,
        percent_text(speed.error, 1, signed=True),
        count_text(speed.tokens_per_second),
        bytes_text(sent.predicted if sent else None),
        bytes_text(sent.measured if sent else None),
        "exact" if sent and sent.is_exact else percent_text(sent.error if sent else None, signed=True),
        number_text(case.curve.final),
        case.status,
    )


def _served(comparison: RunComparison, cases: Sequence[CaseComparison]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """The tables of served cases as one: what is measured, each number with the prediction's error."""
    shown = {id(case) for case in cases}
    tables = serving_tables(comparison)
    places = [
        (table, place)
        for table in tables
        for place, heading in enumerate(table.headings)
        if heading != "outcome" and not heading.endswith("predicted") and (place or table is tables[0])
    ]
    served = [case for case in comparison.opened if case.serving]
    rows = [
        (*(table.rows[number][place] for table, place in places), case.status)
        for number, case in enumerate(served)
        if id(case) in shown
    ]
    return [*(table.headings[place] for table, place in places), "outcome"], rows


def _ranked(comparison: RunComparison) -> list[str]:
    """The table of choices between layouts; nothing for a run without."""
    ranking = run_ranking(comparison)
    if ranking is None:
        return []
    shown = ranking_table(ranking)
    return ["", f"## {escape(shown.title)}", "", *folded("choices", shown.headings, shown.rows)]


def _peers(comparison: RunComparison) -> list[str]:
    """What other tools say of the same cases; nothing where none was asked."""
    rows = peers_rows(comparison)
    if not rows:
        return []
    lines = ["", "## Other tools on the same measured runs", "", escape(NOTE), ""]
    lines += folded(plural(len(rows), "row"), ("case", "tool", *HEADINGS), rows[:ROWS])
    return [*lines, *(["", f"{count_text(len(rows) - ROWS)} more rows are in the page."] if len(rows) > ROWS else [])]


def _reasons(comparison: RunComparison) -> list[str]:
    """Why cases did not end well."""
    found = comparison.unfinished
    if not found:
        return []
    lines = ["", "## Not measured", "", *(_failure(case) for case in found[:_REASONS])]
    return [*lines, *([f"- and {count_text(len(found) - _REASONS)} more"] if len(found) > _REASONS else [])]


def _failure(case: CaseComparison) -> str:
    reason = shorten(plain(case.reason), _REASON_LIMIT) or "no measurement"
    return f"- **{escape(case.status)}** {escape(case.case.label)}: {escape(reason)}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _is_known(cell: str) -> bool:
    return cell not in ("", NOT_KNOWN)
