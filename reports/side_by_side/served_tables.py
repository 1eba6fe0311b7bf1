"""A group of served cases as tables: times to the tokens, bytes of the cache, what the cache is made of."""

from __future__ import annotations

from reports.comparison import Comparison
from reports.serving_rows import Timing
from reports.side_by_side.cells import Cell, SideTable, both, is_there, key_of, pair_cells, time_cells
from reports.side_by_side.groups import Choice, Group
from reports.side_by_side.wins import front
from suite.record import Component, Quantity
from suite.units import bytes_text, count_text


def served_tables(group: Group) -> tuple[SideTable, ...]:
    """Both tables of a group that serves."""
    return (_served(group), _parts_of_cache(group))


def _served(group: Group) -> SideTable:
    """Times to the tokens and bytes of the cache."""
    _, best = front(group)
    several = ("ranks",) if len(group.ranks) > 1 else ()
    headings = (
        "layout", *several, "first token", "error", "next token", "error", "tokens/s", "cache", "error",
        "tokens that differ", "Pareto front", "outcome",
    )  # fmt: skip
    rows = []
    for choice in group.choices:
        found = choice.case.serving
        assert found is not None  # of a group that serves
        cache, differ = found.fullest(Quantity.CACHE), found.answers.get(Quantity.TOKENS_DIFFER)
        rows.append(
            (
                Cell(choice.name),
                *((Cell(str(choice.ranks), choice.ranks),) if several else ()),
                *_timing(found.prefill),
                *_timing(found.decode),
                Cell(count_text(found.tokens_per_second), key_of(found.tokens_per_second)),
                *pair_cells(cache.predicted if cache else None, cache.measured if cache else None, bytes_text),
                Cell(count_text(differ), key_of(differ)),
                Cell("yes" if choice.name in best else "", float(choice.name in best)),
                Cell(choice.case.status),
            )
        )
    title = "served layouts, next token soonest first: measured, and the prediction's error"
    return SideTable("overview", title, headings, tuple(rows), ("layout", "Pareto front", "outcome"))


def _timing(found: Timing) -> tuple[Cell, Cell]:
    return time_cells(found.median, found.predicted, found.error, found.is_noisy)


def _parts_of_cache(group: Group) -> SideTable:
    """What the fullest rank's cache is made of."""
    parts = {choice.name: _cache_rows(choice) for choice in group.choices}
    used = [part for part in Component if any(is_there(row.get(part)) for row in parts.values())]
    rows = [
        (Cell(choice.name), *(both(parts[choice.name].get(part), bytes_text) for part in used))
        for choice in group.choices
    ]
    title = "cache by component on the fullest rank: measured and the prediction's error"
    return SideTable("memory", title, ("layout", *(part.value for part in used)), tuple(rows))


def _cache_rows(choice: Choice) -> dict[Component, Comparison]:
    found = choice.case.serving
    total = found.fullest(Quantity.CACHE) if found else None
    rows = (row for row in (found.rows if found else ()) if total and row.rank == total.rank)
    return {row.component: row for row in rows if row.component and row.quantity is Quantity.CACHE}
