"""From a run's folder to a Run: the rows of its store put together, case by case."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reports.compare import CaseResult, Run
from suite.case import Case, case_from
from suite.parse import SpecError, require
from suite.peers import PeerAnswer
from suite.received import RoutedAs
from suite.store import EstimateRow, MeasurementRow, PeersRow, RunRow, RunStore, TraceRow


def load_run(path: Path | str) -> Run:
    """The run recorded in a folder (or in its records file), in the order of its suite.

    Cases that were asked for and not run yet are there, without a measurement; of a case estimated or measured
    twice the later row counts. SpecError where nothing is recorded, or the records are damaged or not ours.
    """
    store = RunStore.open(Path(path))
    rows = store.read()
    asked = [row for row in rows if isinstance(row, RunRow)]
    require(bool(asked), f"{store.path}: no row says what was asked for; the run ended before it began")
    cases: dict[str, Case] = {}
    for number, mapping in enumerate(asked[0].cases):
        case = _case(mapping, f"{store.path}: case {number}")
        cases[case.case_id] = case
    estimates: dict[str, EstimateRow] = {}
    assumed: dict[str, EstimateRow] = {}
    measurements: dict[str, list[MeasurementRow]] = {}
    peers: dict[str, tuple[PeerAnswer, ...]] = {}
    traces: dict[str, TraceRow] = {}
    for row in rows:
        if isinstance(row, RunRow):
            continue
        # found by what the case says, not by the id written then: a key added since would change it
        case = store.case_of(row)
        cases.setdefault(case.case_id, case)
        if isinstance(row, EstimateRow):
            estimates[case.case_id] = row
            if row.routing is RoutedAs.ASSUMED:
                assumed[case.case_id] = row
        elif isinstance(row, PeersRow):
            peers[case.case_id] = row.answers
        elif isinstance(row, TraceRow):
            traces[case.case_id] = row
        else:
            measurements.setdefault(case.case_id, []).append(row)
    return Run(
        name=store.folder.resolve().name,
        created=asked[0].created,
        suite=asked[0].suite,
        command=shlex.join(asked[0].command),
        environment=asked[0].environment,
        passes=asked[0].passes,
        peers=asked[0].peers,
        results=tuple(
            replace(
                _result(case, estimates.get(key), measurements.get(key, []), peers.get(key, ()), traces.get(key)),
                assumed=assumed[key].memory if key in assumed and estimates[key] is not assumed[key] else (),
            )
            for key, case in cases.items()
        ),
    )


def _result(
    case: Case,
    estimate: EstimateRow | None,
    measured: Sequence[MeasurementRow],
    peers: tuple[PeerAnswer, ...],
    trace: TraceRow | None,
) -> CaseResult:
    return CaseResult(
        case=case,
        memory=estimate.memory if estimate else (),
        time=estimate.time if estimate else None,
        measurement=measured[-1].measurement if measured else None,
        unpredicted=estimate.reason if estimate else "",
        traffic=estimate.traffic if estimate else (),
        timelines=estimate.timelines if estimate else (),
        peers=peers,
        traced=trace.samples if trace else (),
        untraced=trace.reason if trace else "",
        serving=estimate.serving if estimate else None,
        earlier=tuple(row.measurement for row in measured[:-1]),
    )


def _case(mapping: dict[str, object], where: str) -> Case:
    try:
        return case_from(mapping)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None
