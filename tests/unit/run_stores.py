"""Runs made up in a folder, as `bench` leaves them: times as told, everything else alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suite.case import Case
from suite.record import Measurement, Moment, Outcome, Quantity, Sample
from suite.store import EstimateRow, MeasurementRow, RunRow, RunStore
from tests.unit import report_samples as made

MACHINE: dict[str, Any] = {
    "python": "3.11.2",
    "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
    "packages": {"torch": "2.13.0"},
    "git": {"commit": "a" * 40, "dirty": False},
    "cpu": "Example CPU",
    "cores": 2,
    "memory_bytes": 16 * 2**30,
    "threads": None,
}
WARMUP = (9.0, 9.0, 9.0)  # of steps, dropped


def ran(
    of: Case,
    steps: Sequence[float],
    peak: float = 1e9,
    loss: float = 3.5,
    outcome: Outcome = Outcome.OK,
    **environment: Any,
) -> Measurement:
    """A case that took so long a step, warm-up before them."""
    if outcome is not Outcome.OK:
        return Measurement(of.case_id, outcome, reason="said why")
    samples = made.series(Quantity.STEP_TIME, [*WARMUP, *steps])
    samples += [Sample(Quantity.MEMORY, peak, 0, moment=Moment.LOSS), *made.series(Quantity.LOSS, [9.0, loss])]
    return made.measured(of, samples, environment=environment)


def write_run(
    root: Path,
    measurements: Mapping[Case, Sequence[Measurement]],
    commit: str = "a",
    created: str = "2026-11-22T10:00:00+00:00",
    predicted: float | None = None,
    **environment: Any,
) -> Path:
    """A run of these cases, each launched so often, at that commit (a letter; with a + files differed); its folder.

    `predicted`: seconds of a step as the machine's own operators had it.
    """
    store = RunStore.create(root)
    git = {"commit": commit[0] * 40, "dirty": commit.endswith("+")} if commit else None
    facts = {**MACHINE, "git": git, **environment}
    mappings = tuple(case.to_mapping() for case in measurements)
    store.append(RunRow(created, "made up", mappings, ("bench",), facts))
    for case in measurements if predicted else ():
        time = made.time_estimate(case, predicted or 0.0)
        store.append(EstimateRow(case.case_id, case.to_mapping(), time=time))
    for number in range(max((len(each) for each in measurements.values()), default=0)):
        for case, launches in measurements.items():
            if number < len(launches):
                store.append(MeasurementRow(case.to_mapping(), launches[number]))
    return store.folder
