"""Layouts side by side as one self-contained page: who wins where, every table, and the figures, group by group."""

from __future__ import annotations

from reports.made_on import made_on
from reports.page_blocks import Block, Figures, Fold, Notes, Section, render_document
from reports.page_table import Cell, Column, Kind, Table, words
from reports.side_by_side.cells import SideTable
from reports.side_by_side.figures import group_charts
from reports.side_by_side.groups import Group, SideBySide
from reports.side_by_side.tables import group_tables
from reports.side_by_side.text import WIN_HEADINGS, alone_lines, definitions, group_lines, win_rows


def render_side_by_side(found: SideBySide) -> str:
    """The page as HTML."""
    run = found.comparison.run
    sections = [_section(group, f"group-{place}") for place, group in enumerate(found.groups)]
    meaning = Section("What winning and tying mean", (Notes((*definitions(), *alone_lines(found))),), "meaning")
    meta = (f"Run {run.name} of {run.suite}, {run.created}", made_on(run), run.command)
    title = f"Layouts side by side: {run.suite}"
    return render_document(title, [*sections, meaning], meta=[line for line in meta if line])


def _section(group: Group, key: str) -> Section:
    overview, *parts = group_tables(group)
    blocks: list[Block] = [
        Table(f"{key}-wins", "Which wins where", tuple(map(Column, WIN_HEADINGS)), _win_cells(group)),
        _table(overview, key),
        Notes(group_lines(group)),
        Figures(group_charts(group, key)),
        *(Fold(table.title[0].upper() + table.title[1:], (_table(table, key),)) for table in parts),
    ]
    return Section(group.title, tuple(blocks), key)


def _win_cells(group: Group) -> tuple[tuple[Cell, ...], ...]:
    return tuple(tuple(map(words, row)) for row in win_rows(group))


def _table(table: SideTable, key: str) -> Table:
    columns = tuple(Column(heading, Kind.TEXT if heading in table.words else Kind.NUMBER) for heading in table.headings)
    rows = tuple(
        tuple(Cell(cell.text, cell.key if isinstance(cell.key, float | int) else None) for cell in row)
        for row in table.rows
    )
    return Table(f"{key}-{table.key}", table.title[0].upper() + table.title[1:], columns, rows, example="fsdp tp2")
