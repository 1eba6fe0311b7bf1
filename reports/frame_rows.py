"""A run as flat rows: a number a row, its quantity, unit and place beside it; what has no number says why."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

from reports.compare import CaseResult, Run
from reports.text import plain
from suite.collectives import tally
from suite.peers import PeerAnswer
from suite.record import UNITS, Quantity, Sample, TimeEstimate, traffic_values

Row = dict[str, Any]

#: what is predicted of a step beside its time and rate: the name of a TimeEstimate's field -> its unit
USE = {"tflops_per_gpu": "TFLOP/s", "mfu": "1", "hfu": "1", "mfu_full_attention": "1"}
#: parts of a predicted step and what peers say of parameters, gradients and optimizer state together
STEP_PART, STATES = "step_part_seconds", "state_bytes"


def run_rows(run: Run) -> Iterator[Row]:
    """The rows of a run, case by case; a case without any number has one that says how it ended."""
    name = _clean(run.name)
    for result in run.results:
        common = {"run": name, **_common(result)}
        numbers = [*_predicted(result), *_measured(result), *_traced(result), *_peers(result)]
        for number in numbers or [{}]:
            yield _finite({**common, **number})


def _common(result: CaseResult) -> Row:
    case, measurement = result.case, result.measurement
    return {
        "case_id": case.case_id,
        "case": _clean(case.label),
        "model": _clean(case.model.name),
        "layout": str(case.layout),
        "precision": case.workload.precision.value,
        "attention": case.workload.attention.value,
        "cache": str(case.cache) if case.serves else None,
        "world_size": case.layout.world_size,
        "outcome": measurement.outcome.value if measurement else None,
        "reason": _clean(measurement.reason or None) if measurement else None,
    }


def _number(tier: str, quantity: Quantity, value: float | None, **place: Any) -> Row:
    return {"tier": tier, "quantity": quantity.value, "unit": UNITS[quantity], "value": value, **place}


def _predicted(result: CaseResult) -> Iterator[Row]:
    for estimate in result.memory:
        for term in estimate.terms:
            place = {"component": term.component.value, "moment": term.moment.value, "rank": term.rank}
            yield _number("formula", term.quantity, term.value, **place, **_why(term.formula, term.source))
    yield from _messages(result)
    if result.time:
        yield from _times(result.time)
    if served := result.serving:
        for piece in served.cache:
            place = {"component": piece.component.value, "rank": piece.rank}
            yield _number("formula", piece.quantity, piece.nbytes, **place, **_why(piece.formula, piece.source))
        times = ((Quantity.PREFILL_TIME, served.prefill_seconds), (Quantity.DECODE_TIME, served.decode_seconds))
        for quantity, value in times:
            yield _number("formula", quantity, value, source=_clean(served.basis))
    if result.unpredicted:
        yield {"tier": "formula", "reason": _clean(result.unpredicted)}


def _messages(result: CaseResult) -> Iterator[Row]:
    """The predicted messages, three rows each: bytes sent, payload, calls."""
    for estimate in result.traffic:
        for message in estimate.messages:
            values = [pair for sums in tally([message]).values() for pair in traffic_values(sums).items()]
            place = {"collective": message.collective.value, "rank": estimate.rank}
            why = _why(f"{message.purpose}: {message.formula}", message.source)
            for quantity, value in values:
                yield _number("formula", quantity, value, **place, **why)


def _times(time: TimeEstimate) -> Iterator[Row]:
    """The predicted step: its time and rate, its parts, which sum to the time, and how well the device is used."""
    basis = {"tier": "formula", "source": _clean(time.basis)}
    times = ((Quantity.STEP_TIME, time.step_seconds), (Quantity.THROUGHPUT, time.tokens_per_second))
    for quantity, value in times:
        if value is not None:
            yield {**basis, **_number("formula", quantity, value)}
    for part, seconds in time.parts_seconds.items():
        yield {**basis, "quantity": STEP_PART, "part": part, "unit": "s", "value": seconds}
    for name, unit in USE.items():
        if (value := getattr(time, name)) is not None:
            yield {**basis, "quantity": name, "unit": unit, "value": value}


def _measured(result: CaseResult) -> Iterator[Row]:
    for sample in result.measurement.samples if result.measurement else ():
        yield _sample("measure", sample)


def _traced(result: CaseResult) -> Iterator[Row]:
    for sample in result.traced:
        yield _sample("trace", sample)
    if result.untraced:
        yield {"tier": "trace", "reason": _clean(result.untraced)}


def _sample(tier: str, sample: Sample) -> Row:
    return _number(
        tier,
        sample.quantity,
        sample.value,
        component=sample.component.value if sample.component else None,
        moment=sample.moment.value if sample.moment else None,
        collective=sample.collective.value if sample.collective else None,
        rank=sample.rank,
        index=sample.index,
    )


def _peers(result: CaseResult) -> Iterator[Row]:
    for answer in result.peers:
        yield _figure(answer, STATES)
        yield _figure(answer, Quantity.MEMORY.value)


def _figure(answer: PeerAnswer, quantity: str) -> Row:
    """A peer's number of its fullest rank; missing, with the reason, where it states none."""
    figure = answer.states if quantity == STATES else answer.peak
    said = f"{answer.peer.value} {answer.version or ''}".strip()
    row = {"tier": "peer", "quantity": quantity, "unit": "B", "value": figure.nbytes}
    row |= _why(answer.call, said)
    return row if figure.nbytes is not None else {**row, "reason": _clean(figure.reason)}


def _why(formula: str, source: str) -> Row:
    return {"formula": _clean(formula or None), "source": _clean(source or None)}


def _finite(row: Row) -> Row:
    """Files have no word for nan and inf that all readers share: the value is missing, the reason says so."""
    value = row.get("value")
    if value is None or math.isfinite(value):
        return row
    return {**row, "value": None, "reason": f"the value is {value}"}


@cache
def _clean(text: str | None) -> str | None:
    """One line that any file and any terminal takes."""
    return None if text is None else plain(text)
