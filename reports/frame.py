"""A run as a pandas DataFrame, for notebooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from reports.compare import CaseResult, Run
from suite.collectives import tally
from suite.record import Quantity, traffic_values

COLUMNS = (
    "case_id",
    "case",
    "model",
    "layout",
    "precision",
    "attention",
    "world_size",
    "outcome",
    "tier",
    "quantity",
    "component",
    "moment",
    "collective",
    "rank",
    "index",
    "value",
    "formula",
    "source",
)


def run_frame(run: Run) -> pd.DataFrame:
    """Every number of a run, a row each: the estimates' terms (tier `formula`) and the raw samples (tier `measure`).

    Both tiers speak of the same quantity, component, moment and rank, so `pivot_table(index=[...], columns="tier",
    values="value", aggfunc="sum")` lays them side by side; a total that was measured has no component. Values are
    bytes, seconds, tokens/s or nats, as the quantity's name says. A case with no number at all keeps one row, whose
    value is missing and whose outcome says why.
    """
    rows = [row for result in run.results for row in _rows(result)]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype({"rank": "Int64", "index": "Int64", "world_size": "Int64", "value": "float64"})


def _rows(result: CaseResult) -> Iterator[dict[str, Any]]:
    case, measurement = result.case, result.measurement
    common = {
        "case_id": case.case_id,
        "case": case.label,
        "model": case.model.name,
        "layout": str(case.layout),
        "precision": case.workload.precision.value,
        "attention": case.workload.attention.value,
        "world_size": case.layout.world_size,
        "outcome": measurement.outcome.value if measurement else None,
    }
    numbers = [*_predicted(result), *_measured(result)]
    for number in numbers or [{}]:
        yield {**common, **number}


def _predicted(result: CaseResult) -> Iterator[dict[str, Any]]:
    for estimate in result.memory:
        for term in estimate.terms:
            yield {
                "tier": "formula",
                "quantity": term.quantity.value,
                "component": term.component.value,
                "moment": term.moment.value,
                "rank": term.rank,
                "value": term.value,
                "formula": term.formula,
                "source": term.source,
            }
    yield from _messages(result)
    if result.time:
        times = ((Quantity.STEP_TIME, result.time.step_seconds), (Quantity.THROUGHPUT, result.time.tokens_per_second))
        for quantity, value in times:
            if value is not None:
                yield {"tier": "formula", "quantity": quantity.value, "value": value, "source": result.time.basis}


def _messages(result: CaseResult) -> Iterator[dict[str, Any]]:
    """The predicted messages, three rows each: bytes sent, payload, calls."""
    for estimate in result.traffic:
        for message in estimate.messages:
            values = [pair for sums in tally([message]).values() for pair in traffic_values(sums).items()]
            for quantity, value in values:
                yield {
                    "tier": "formula",
                    "quantity": quantity.value,
                    "collective": message.collective.value,
                    "rank": estimate.rank,
                    "value": value,
                    "formula": f"{message.purpose}: {message.formula}",
                    "source": message.source,
                }


def _measured(result: CaseResult) -> Iterator[dict[str, Any]]:
    for sample in result.measurement.samples if result.measurement else ():
        yield {
            "tier": "measure",
            "quantity": sample.quantity.value,
            "component": sample.component.value if sample.component else None,
            "moment": sample.moment.value if sample.moment else None,
            "collective": sample.collective.value if sample.collective else None,
            "rank": sample.rank,
            "index": sample.index,
            "value": sample.value,
        }
