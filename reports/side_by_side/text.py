"""Layouts side by side as text: who wins in words, the tables on the terminal, what noise and ties mean."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from reports.serving_tables import TextTable
from reports.side_by_side.apart import LEAST_READINGS, LEAST_TIME, MANY, SPREADS_OF_FEW, SPREADS_OF_MANY
from reports.side_by_side.cells import SideTable
from reports.side_by_side.groups import Choice, Group, SideBySide
from reports.side_by_side.tables import group_tables
from reports.side_by_side.wins import LEAST_BYTES, PREDICTED_BYTES, PREDICTED_TIME, Basis, Win, wins
from reports.tables import cell, text_table
from reports.text import plain, shorten
from suite.units import NOT_KNOWN, number_text, percent_text

_REASON_LIMIT = 300


def print_side_by_side(found: SideBySide, console: Console) -> None:
    """Group by group who wins, then every table; what stands alone; what the words mean."""
    for group in found.groups:
        console.print(cell(group.title, "bold"))
        console.print(text_table(wins_table(group)))
        for table in group_tables(group):
            console.print(text_table(plain_table(table)))
        for line in group_lines(group):
            console.print(cell(line))
        console.print()
    for line in (*alone_lines(found), *definitions()):
        console.print(cell(line))


def wins_table(group: Group) -> TextTable:
    """Who wins where."""
    return TextTable("which wins where", WIN_HEADINGS, win_rows(group), WIN_HEADINGS)


def plain_table(table: SideTable) -> TextTable:
    """The table's text alone."""
    return TextTable(
        table.title, table.headings, tuple(tuple(each.text for each in row) for row in table.rows), table.words
    )


def group_lines(group: Group) -> tuple[str, ...]:
    """How far the group's loss curves lie apart, where there are two; and why layouts did not end well."""
    lines = [
        f"{choice.name}: {choice.case.status}: {shorten(plain(choice.case.reason), _REASON_LIMIT) or 'no measurement'}"
        for choice in group.choices
        if not choice.case.is_ok
    ]
    if spread := group.loss_spread:
        lines.insert(
            0,
            f"Loss curves: {len(group.learned)} layouts are nowhere further apart than"
            f" {number_text(spread.relative, 2)} of the loss, at step {spread.step} of {spread.steps}.",
        )
    return tuple(lines)


def alone_lines(found: SideBySide) -> tuple[str, ...]:
    """The cases that nothing is laid beside; none where there are none."""
    if not found.alone:
        return ()
    labels = ", ".join(case.case.label for case in found.alone)
    return (f"Alone in what they do, so beside nothing: {labels}.",)


def definitions() -> tuple[str, ...]:
    """What winning, tying and the front rest on."""
    least, band = percent_text(LEAST_TIME, 0), percent_text(LEAST_BYTES)
    return (
        f"Times tie unless their medians differ by {least} and by {number_text(SPREADS_OF_FEW)} times the sum of"
        f" both interquartile ranges ({number_text(SPREADS_OF_MANY)} times from {MANY} readings on), over"
        f" {LEAST_READINGS} readings or more. Readings are of one launch a layout: what a"
        " whole launch is slower by, such as a busy neighbour, is not in them.",
        f"Bytes held tie within {band}, bytes sent if they are equal. Where fewer than two layouts were measured the"
        f" prediction decides; it ties within {percent_text(PREDICTED_TIME, 0)} (times) and"
        f" {percent_text(PREDICTED_BYTES, 0)} (bytes held), its own promise.",
        "Best trade: least time x bytes held. Pareto front: no other layout is told to be better in one of the two and"
        " not told to be worse in the other.",
    )


WIN_HEADINGS = ("where", "winner", "with", "ties with it", "next", "lowest by prediction", "that held")


def win_rows(group: Group) -> tuple[tuple[str, ...], ...]:
    """The group's wins as cells under WIN_HEADINGS."""
    return tuple(_win_cells(win) for win in wins(group))


def _win_cells(win: Win) -> tuple[str, ...]:
    criterion = win.criterion
    if not win.winners:
        return criterion.title, NOT_KNOWN, "not known of two layouts", "", "", "", ""
    first = win.winners[0]
    said = criterion.text(first.case, win.basis) + (" predicted" if win.basis is Basis.PREDICTED else "")
    margin = "" if win.margin is None else f" {percent_text(win.margin, 1, signed=True)}"
    return (
        criterion.title,
        first.name,
        said,
        ", ".join(names(win.winners[1:])) or "none",
        f"{win.next.name}{margin}" if win.next else "none is told apart",
        win.promised.name if win.promised else "",
        _held(win),
    )


def _held(win: Win) -> str:
    if win.held is None:
        return ""
    if win.held:
        return "yes" if not win.regret else f"a tie, {percent_text(win.regret, 1, signed=True)}"
    return f"no, {percent_text(win.regret, 1, signed=True)}"


def names(choices: Iterable[Choice]) -> list[str]:
    """The layouts' names."""
    return [choice.name for choice in choices]
