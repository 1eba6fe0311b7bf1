"""What `trace` answers: the formulas beside what a case's own code allocates on fake tensors, moment by moment."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from memory.estimate import MemoryModel
from memory.trace import Trace, ranks_to_trace, trace, trace_transformers
from reports.compare import CaseComparison, CaseResult, compare_case
from reports.comparison import Comparison
from reports.text import difference_text, plain
from suite.case import Case
from suite.record import Measurement, Outcome, Quantity
from suite.units import bytes_text, percent_text


def trace_ranks(case: Case, rank: int | None, hf_config: str | None = None) -> tuple[Trace, ...]:
    """The trace of the rank asked for, else of the fullest by formula; with a config.json, of transformers' model."""
    ranks = ranks_to_trace(case, rank)
    if hf_config is not None:
        return tuple(trace_transformers(case, each, hf_config) for each in ranks)
    return tuple(trace(case, each) for each in ranks)


def beside(case: Case, found: Trace) -> CaseComparison:
    """A trace in the place of a measurement, joined with the rank's estimate."""
    traced = Measurement(case.case_id, Outcome.OK, found.samples)
    return compare_case(CaseResult(case, memory=(MemoryModel(case).estimate(found.rank),), measurement=traced))


def traces_mapping(case: Case, traces: tuple[Trace, ...]) -> dict[str, Any]:
    """`trace --json`: bytes by rank, moment and component (null: the total), predicted, traced and their difference."""
    return {
        "case_id": case.case_id,
        "case": case.to_mapping(),
        "world_size": case.layout.world_size,
        "ranks": [_rank_mapping(case, found) for found in traces],
    }


def _rank_mapping(case: Case, found: Trace) -> dict[str, Any]:
    return {
        "rank": found.rank,
        "notes": list(found.notes),
        "workspace_bytes": {moment.value: nbytes for moment, nbytes in found.workspace_bytes.items()},
        "rows": [
            {
                "moment": row.moment and row.moment.value,
                "component": row.component and row.component.value,
                "predicted_bytes": _whole(row.predicted),
                "traced_bytes": _whole(row.measured),
                "difference_bytes": _whole(row.difference),
            }
            for row in _memory_rows(beside(case, found))
        ],
    }


def _memory_rows(comparison: CaseComparison) -> list[Comparison]:
    return [row for row in comparison.rows if row.quantity is Quantity.MEMORY]


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def print_traces(case: Case, traces: tuple[Trace, ...], console: Console) -> None:
    """A table for each rank: every moment's total and components."""
    for found in traces:
        console.print(_table(case, found))
        for moment, nbytes in found.workspace_bytes.items():
            if nbytes:
                text = f"workspace of kernels and gloo, by formula, makes {moment.value} {bytes_text(nbytes)} higher"
                console.print(Text(text))
        for note in found.notes:
            console.print(Text(plain(note)))


def _table(case: Case, found: Trace) -> Table:
    title = f"{case.label}: rank {found.rank} of {case.layout.world_size}, the formulas beside the trace"
    table = Table(title=Text(plain(title), "bold"), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("moment")
    table.add_column("component")
    for heading in ("predicted", "traced", "difference", "error"):
        table.add_column(heading, justify="right")
    for row in _memory_rows(beside(case, found)):
        if not (row.predicted or row.measured):
            continue
        is_total = row.component is None
        table.add_row(
            Text(row.moment.value if row.moment and is_total else ""),
            Text("total" if row.component is None else row.component.value),
            Text(bytes_text(row.predicted)),
            Text(bytes_text(row.measured)),
            Text("exact" if row.is_exact else difference_text(row.difference)),
            Text("" if row.is_exact else percent_text(row.error, signed=True)),
            style="bold" if is_total else "",
        )
    return table
