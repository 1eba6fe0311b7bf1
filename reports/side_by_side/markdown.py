"""Layouts side by side for a pull request: who wins where, a row a layout, each number with the prediction's error."""

from __future__ import annotations

from reports.made_on import made_on
from reports.markdown import ROWS, escape, fold, folded, table_lines
from reports.side_by_side.groups import Group, SideBySide
from reports.side_by_side.tables import group_tables
from reports.side_by_side.text import WIN_HEADINGS, alone_lines, definitions, group_lines, win_rows
from reports.text import plural

#: lines beside a group's tables: its losses, and why layouts did not end well
_LINES = 10


def side_by_side_markdown(found: SideBySide) -> str:
    """The report's text: of each group the wins and a table of its layouts, of which at most ROWS are shown."""
    run = found.comparison.run
    lines = [f"# Shardscope: layouts of {escape(run.suite)} side by side", ""]
    lines += [f"Run {escape(run.name)}, {escape(run.created)}: {escape(made_on(run))}."]
    for group in found.groups:
        lines += _group(group)
    lines += ["", *(escape(line) for line in alone_lines(found))] if found.alone else []
    lines += ["", *fold("What winning and tying mean", [f"- {escape(line)}" for line in definitions()]), ""]
    return "\n".join(lines)


def _group(group: Group) -> list[str]:
    lines = ["", f"## {escape(group.title)}", "", *table_lines(WIN_HEADINGS, win_rows(group)), ""]
    overview = group_tables(group)[0]
    rows = [[cell.text for cell in row] for row in overview.rows[:ROWS]]
    lines += folded(plural(len(rows), "layout"), overview.headings, rows)
    if len(overview.rows) > ROWS:
        lines += ["", f"{len(overview.rows) - ROWS} more layouts are slower; the page has all."]
    said = [f"- {escape(line)}" for line in group_lines(group)]
    return [*lines, *(["", *said[:_LINES]] if said else [])]
