"""Two runs compared, for a pull request: short, in GitHub's Markdown, nothing of a user's text taken for markup."""

from __future__ import annotations

from reports.markdown import escape
from reports.regress.pair import PairComparison
from reports.regress.text import (
    HEADINGS,
    definitions,
    heading_lines,
    note_lines,
    outcome_lines,
    row_cells,
    same_line,
    summary_line,
    told,
)

#: rows that a comment shows
SHOWN_ROWS = 40


def pair_markdown(found: PairComparison) -> str:
    """The verdicts in a line, what is not the same worst first, and folded what it rests on."""
    lines = ["# Shardscope: B against A", "", escape(summary_line(found)), ""]
    lines += [f"- {escape(line.strip())}" for line in (*heading_lines(found), *outcome_lines(found))]
    rows = told(found)
    if rows:
        lines += ["", _row(("case", *HEADINGS)), _row(("---", "---", "---", *["---:"] * 7, "---"))]
        lines += [_row(tuple(map(escape, (row.case.label, *row_cells(row))))) for row in rows[:SHOWN_ROWS]]
    if len(rows) > SHOWN_ROWS:
        lines += ["", f"{len(rows) - SHOWN_ROWS} more rows are less bad."]
    if same := same_line(found):
        lines += ["", escape(same)]
    lines += ["", *(escape(line) for line in note_lines(found))]
    lines += ["", "<details><summary>What the verdicts mean</summary>", ""]
    return "\n".join([*lines, *(f"- {escape(line)}" for line in definitions(found)), "", "</details>", ""])


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
