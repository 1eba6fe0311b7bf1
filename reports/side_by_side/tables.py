"""A group's layouts as tables: all in a row each, memory by component, time by part, bytes sent by collective.

Every measured number has the prediction's error beside it, or the word exact; what was not measured says so.
"""

from __future__ import annotations

from reports.compare import CaseComparison
from reports.comparison import Comparison
from reports.side_by_side.cells import (
    Cell,
    SideTable,
    both,
    is_there,
    key_of,
    known_columns,
    pair_cells,
    promise,
    sides,
    time_cells,
)
from reports.side_by_side.groups import Group
from reports.side_by_side.served_tables import served_tables
from reports.side_by_side.wins import Basis, front, sent_row
from reports.speed import Speed
from reports.time_view import part_of
from suite.collectives import Collective
from suite.record import Component, Quantity
from suite.units import bytes_text, count_text, number_text, seconds_text


def group_tables(group: Group) -> tuple[SideTable, ...]:
    """Every table that the group has numbers for."""
    if group.serves:
        return tuple(map(known_columns, served_tables(group)))
    found = (_overview(group), _memory(group), _times(group), _sent(group))
    return tuple(known_columns(table) for table in found if table)


# --- all of them ---------------------------------------------------------------------------------------------------


def _overview(group: Group) -> SideTable:
    basis, best = front(group)
    several = ("ranks",) if len(group.ranks) > 1 else ()
    headings = (
        "layout", *several, "step", "error", "IQR", "tokens/s", "peak memory", "error", "bytes sent", "error",
        "final loss", "Pareto front", "outcome",
    )  # fmt: skip
    rows = []
    for choice in group.choices:
        case = choice.case
        speed, peak, sent = case.speed, case.peak, sent_row(case)
        measured = peak.measured.bytes if peak.measured else None
        predicted = peak.predicted.bytes if peak.predicted else None
        rows.append(
            (
                Cell(choice.name),
                *((Cell(str(choice.ranks), choice.ranks),) if several else ()),
                *time_cells(speed.measured_seconds, speed.predicted_seconds, speed.error, speed.is_noisy),
                Cell(
                    seconds_text(speed.step.iqr if speed.step else None), key_of(speed.step.iqr if speed.step else None)
                ),
                _rate(speed),
                *pair_cells(predicted, measured, bytes_text),
                *pair_cells(sent.predicted if sent else None, sent.measured if sent else None, bytes_text),
                Cell(number_text(case.curve.final, 6), key_of(case.curve.final)),
                Cell("yes" if choice.name in best else "", float(choice.name in best)),
                Cell(case.status),
            )
        )
    note = "; Pareto front: by prediction" if best and basis is Basis.PREDICTED else ""
    is_timed = any(choice.case.speed.step or choice.case.speed.predicted_seconds for choice in group.choices)
    title = f"layouts, {'fastest' if is_timed else 'leanest'} first: measured, and the prediction's error{note}"
    return SideTable("overview", title, headings, tuple(rows), ("layout", "Pareto front", "outcome"))


def _rate(speed: Speed) -> Cell:
    if speed.tokens_per_second is not None:
        return Cell(count_text(speed.tokens_per_second), speed.tokens_per_second)
    return Cell(promise(count_text(speed.predicted_tokens_per_second)), key_of(speed.predicted_tokens_per_second))


# --- what each is made of ------------------------------------------------------------------------------------------


def _memory(group: Group) -> SideTable | None:
    """Bytes by component on the fullest rank at its measured peak; at the predicted one where none was measured."""
    parts = {choice.name: _components(choice.case) for choice in group.choices}
    used = [part for part in Component if any(is_there(row.get(part)) for row in parts.values())]
    if not used:
        return None
    rows = []
    for choice in group.choices:
        peak = choice.case.peak
        predicted = peak.predicted.bytes if peak.predicted else None
        measured = peak.measured.bytes if peak.measured else None
        cells = [both(parts[choice.name].get(part), bytes_text) for part in used]
        rows.append((Cell(choice.name), *sides(predicted, measured, bytes_text), *cells))
    title = "memory by component on the fullest rank at its peak: measured and the prediction's error"
    headings = ("layout", "predicted", "measured", "error", *(part.value for part in used))
    return SideTable("memory", title, headings, tuple(rows))


def _components(case: CaseComparison) -> dict[Component, Comparison]:
    instant = case.peak.measured or case.peak.predicted
    return {row.component: row for row in (case.components_at(instant) if instant else ()) if row.component}


def _times(group: Group) -> SideTable | None:
    """Predicted seconds by part beside the measured step."""
    parts = {choice.name: _seconds_by_part(choice.case) for choice in group.choices}
    used = list(dict.fromkeys(part for row in parts.values() for part, seconds in row.items() if seconds))
    if not used:
        return None
    rows = []
    for choice in group.choices:
        speed = choice.case.speed
        predicted, measured, error = sides(speed.predicted_seconds, speed.measured_seconds, seconds_text, 1)
        noisy = Cell(measured.text + (" noisy" if speed.is_noisy else ""), measured.key)
        found = parts[choice.name]
        cells = [Cell(seconds_text(found[part]) if found.get(part) else "", found.get(part, 0.0)) for part in used]
        rows.append((Cell(choice.name), predicted, noisy, error, *cells))
    title = "time of a step: predicted, measured (median), and the parts of the prediction"
    return SideTable("times", title, ("layout", "predicted", "measured", "error", *used), tuple(rows))


def _seconds_by_part(case: CaseComparison) -> dict[str, float]:
    predicted = case.speed.predicted
    found = predicted.parts_seconds if predicted else {}
    return {part_of(name).value.replace("_", " "): seconds for name, seconds in found.items()}


def _sent(group: Group) -> SideTable | None:
    """Bytes sent by collective, of the rank that sends most."""
    rows_of = {choice.name: _collectives(choice.case) for choice in group.choices}
    used = [kind for kind in Collective if any(is_there(row.get(kind)) for row in rows_of.values())]
    if not used:
        return None
    rows = []
    for choice in group.choices:
        total = sent_row(choice.case)
        found = sides(total.predicted if total else None, total.measured if total else None, bytes_text)
        cells = [both(rows_of[choice.name].get(kind), bytes_text) for kind in used]
        rows.append((Cell(choice.name), *found, *cells))
    title = "bytes sent in a step by the rank that sends most, by collective: measured and the prediction's error"
    headings = ("layout", "predicted", "measured", "error", *(kind.value.replace("_", " ") for kind in used))
    return SideTable("sent", title, headings, tuple(rows))


def _collectives(case: CaseComparison) -> dict[Collective, Comparison]:
    total = sent_row(case)
    found = (row for row in case.traffic if total and row.rank == total.rank and row.collective)
    return {row.collective: row for row in found if row.collective and row.quantity is Quantity.BYTES_SENT}
