"""Runs cases one after another and records each: its estimate before it runs, its measurement after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from suite.case import Case
from suite.progress import Progress
from suite.record import Measurement, Outcome
from suite.store import EstimateRow, MeasurementRow, RunStore


class Runner(Protocol):
    """What runs a case in a folder; suite.launch.Launcher is one."""

    def run(self, case: Case, folder: Path) -> Measurement:
        """Run the case and say how it ended; a failure is a Measurement too."""
        ...


def sweep(
    cases: Sequence[Case],
    store: RunStore,
    launcher: Runner,
    predict: Callable[[Case], EstimateRow],
    progress: Progress,
    launches: int = 1,
) -> tuple[Measurement, ...]:
    """Run the cases that the store has no measurement of; the last measurements of all of them, in order of `cases`.

    With several `launches` all cases run once, then all again: launches of one case lie apart in time, as those of two
    runs do. One that does not end well is not launched again.

    Called again on the same store it goes on where it stopped: a case that ended, in whatever way, is not run
    again, and one that was cut short is. A case that fails does not stop the rest. KeyboardInterrupt passes
    through when the running case's processes have ended; that case is not recorded as measured.
    """
    wanted = {case.case_id: case for case in cases}
    done = Counter(row.measurement.case_id for row in store.rows(MeasurementRow))
    measured = {case_id: row for case_id, row in finished(store).items() if case_id in wanted}
    progress.begin(total=len(wanted) * launches, done=sum(done[case_id] for case_id in measured))
    for number in range(launches):
        for case_id, case in wanted.items():
            last = measured.get(case_id)
            if done[case_id] > number or (last and last.outcome is not Outcome.OK):
                continue
            progress.case_started(case)
            if not last:
                store.append(_estimate(case, predict))
            measurement = launcher.run(case, store.case_folder(case_id))
            store.append(MeasurementRow(case.to_mapping(), measurement))
            measured[case_id] = measurement
            progress.case_ended(case, measurement)
    return tuple(measured[case.case_id] for case in cases)


def finished(store: RunStore) -> dict[str, Measurement]:
    """What the store has measured so far, by case id."""
    return {row.measurement.case_id: row.measurement for row in store.rows(MeasurementRow)}


def _estimate(case: Case, predict: Callable[[Case], EstimateRow]) -> EstimateRow:
    """The case's estimate; where the formulas fail, a row that says so: hours of runs do not end for that."""
    try:
        return predict(case)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return EstimateRow(case.case_id, case.to_mapping(), reason=reason)
