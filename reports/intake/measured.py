"""`import FILE --from snapshot|kineto`: what another tool measured, beside the estimate, and recorded as a run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reports.calibrated import calibration_given
from reports.export import write_report
from reports.intake.kineto import is_trace, read_traces
from reports.intake.laid import Laid, lay
from reports.intake.laid_text import laid_mapping, print_laid
from reports.intake.memory_timeline import is_timeline, read_timelines
from reports.intake.packed import Document, read_documents
from reports.intake.reading import KINETO, MEASURED, SNAPSHOT, Reading
from reports.intake.snapshot import is_snapshot, read_snapshots
from reports.load import load_run
from reports.predict import Predictor
from reports.streams import output, tell
from suite import flags
from suite.environment import ROOT, git_state
from suite.parse import SpecError, require, shown, to_mapping
from suite.passes import Pass
from suite.record import Outcome, Quantity
from suite.store import MeasurementRow, RunRow, RunStore

Reader = tuple[Callable[[Any], bool], Callable[[list[Document]], Reading]]
_READERS: dict[str, tuple[Reader, ...]] = {
    SNAPSHOT: ((is_snapshot, read_snapshots), (is_timeline, read_timelines)),
    KINETO: ((is_trace, read_traces),),
}


def answer_measurement(options: argparse.Namespace) -> int:
    """Read the file, print it beside the estimate, record it where --runs says; 1 where the run ran out of memory."""
    require(getattr(options, "out", None) is None, "--out: FILE is a measurement, not a case; --runs records it")
    case = flags.trained_case_of(options)
    predictor = Predictor(calibration_given(options.calibration))
    root = None if options.runs is None else Path(options.runs)
    require(
        root is None or not root.exists() or root.is_dir(), f"--runs: {shown(options.runs)} is a file; name a folder"
    )
    require(options.file != "-", "FILE: a snapshot or trace is not read from standard input; name a file")
    laid = lay(case, _read(options.file, options.source), predictor, _about(options))
    folder = None if root is None else _record(root, laid, options)
    for note in laid.notes:
        tell(f"note: {note}")
    if options.json:
        print(json.dumps(to_mapping({**laid_mapping(laid), "run": None if folder is None else str(folder)})))
    else:
        print_laid(laid, output())
        if folder is not None:
            tell(f"{folder}: recorded; `report {folder}` opens it")
    return 0 if laid.measurement.outcome is Outcome.OK else 1


def _read(path: str, named: str | None) -> Reading:
    """The reading of all documents, which must be of one kind."""
    documents = read_documents(path)
    kinds = [kind for source in ([named] if named else MEASURED) for kind in _READERS[source]]
    for is_kind, read in kinds:
        if is_kind(documents[0].data):
            for document in documents:
                name = shown(document.name)
                require(is_kind(document.data), f"FILE: {name} is of another kind than {shown(documents[0].name)}")
            return read(documents)
    what = {SNAPSHOT: "no snapshot and no memory timeline", KINETO: "no trace"}.get(named or "", "no measurement")
    other = next((name for name in MEASURED for kind in _READERS[name] if kind[0](documents[0].data)), None)
    hint = f"; try --from {other}" if other else ""
    raise SpecError(f"FILE: {shown(documents[0].name)} is {what} that is known{hint}")


def _about(options: argparse.Namespace) -> dict[str, Any]:
    """What the measurement was taken from; of the machine that it was made on the file says nothing."""
    return {"imported_from": Path(options.file).name, "imported": datetime.now(UTC).isoformat(timespec="seconds")}


def _record(root: Path, laid: Laid, options: argparse.Namespace) -> Path:
    """A run of one case, as `bench` leaves it: records, page and summary."""
    quantities = {sample.quantity for sample in laid.measurement.samples}
    measured = {Pass.TRAIN: Quantity.STEP_TIME, Pass.MEMORY: Quantity.MEMORY}
    store = RunStore.create(root)
    store.append(
        RunRow(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            suite=f"imported: {laid.reading.source}",
            cases=(laid.case.to_mapping(),),
            command=(*options.program.split(), *options.arguments),
            environment={"git": git_state(ROOT), **_about(options)},
            passes=tuple(each for each, quantity in measured.items() if quantity in quantities),
        )
    )
    store.append(laid.estimate)
    store.append(MeasurementRow(laid.case.to_mapping(), laid.measurement))
    write_report(load_run(store.folder), store.folder)
    return store.folder
