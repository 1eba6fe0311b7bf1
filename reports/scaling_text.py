"""What `simulate --sweep` says: one document for a program, a table for a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reports.answer import STYLE
from reports.scaling import Curve, Point, Scaling, Sweep
from reports.text import plain
from suite.units import NOT_KNOWN, count_text, percent_text, seconds_text


@dataclass(frozen=True)
class SweepRow:
    """A point with what it says of itself; None where it was not simulated."""

    scaling: Scaling
    value: int
    global_batch: int | None
    step_seconds: float | None
    tokens_per_second: float | None
    ideal_tokens_per_second: float | None
    efficiency: float | None
    mfu: float | None
    reason: str


def sweep_rows(sweep: Sweep) -> list[SweepRow]:
    """Every point of every curve."""
    return [_row(curve, point) for curve in sweep.curves for point in curve.points]


def _row(curve: Curve, point: Point) -> SweepRow:
    found = point.simulation
    return SweepRow(
        curve.scaling,
        point.value,
        point.case.global_batch if point.case else None,
        found.step_seconds if found else None,
        found.tokens_per_second if found else None,
        curve.ideal(point) if found else None,
        curve.efficiency(point),
        found.causal.mfu if found else None,
        point.reason,
    )


def sweep_mapping(sweep: Sweep) -> dict[str, Any]:
    """The `sweep` of `simulate --json`."""
    return {
        "axis": sweep.axis.name,
        "grows": sweep.grows or None,
        "per_node": sweep.per_node or None,
        "points": [
            {**vars(row), "scaling": row.scaling.value, "reason": row.reason or None} for row in sweep_rows(sweep)
        ],
    }


def print_sweep(sweep: Sweep, console: Console) -> None:
    """A table a curve, and below it what was left out and why."""
    name = "GPUs" if sweep.grows else sweep.axis.name
    if sweep.grows:
        grown = f"Added GPUs go to {sweep.grows}, in nodes of {sweep.per_node}; efficiency is over the first point's"
        console.print(Text(grown))
    for curve in sweep.curves:
        rows = [row for row in sweep_rows(sweep) if row.scaling is curve.scaling]
        if curve.run:
            console.print(_table(name, curve, [row for row in rows if row.step_seconds is not None]))
        for row in rows:
            if row.reason:
                console.print(Text(plain(f"  {name} {count_text(row.value)}, {title(curve)}: {row.reason}")))


def title(curve: Curve) -> str:
    """What the curve keeps."""
    words = {
        Scaling.STRONG: "strong scaling (one global batch)",
        Scaling.WEAK: "weak scaling (one batch a GPU)",
        Scaling.SIZE: "the same GPUs",
    }
    return words[curve.scaling]


def _table(name: str, curve: Curve, rows: list[SweepRow]) -> Table:
    table = Table(title=title(curve), **STYLE)
    for column in (name, "batch", "step", "tokens/s", "efficiency", "MFU"):
        table.add_column(column, justify="right")
    for row in rows:
        efficiency = NOT_KNOWN if row.efficiency is None else percent_text(row.efficiency, 1)
        table.add_row(
            count_text(row.value),
            count_text(row.global_batch),
            seconds_text(row.step_seconds),
            count_text(row.tokens_per_second),
            efficiency,
            percent_text(row.mfu, 1),
        )
    return table
