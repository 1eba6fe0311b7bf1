"""Measures this machine at the shapes that served cases need: operators, attention through caches, messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from parallelism.calibration.asking import OperatorTimeError
from parallelism.calibration.serving_asking import measure_serving
from parallelism.simulator.serving_cpu import serving_untimed, serving_wanted
from reports.streams import tell
from reports.text import plural
from suite.case import Case
from suite.environment import available_cores
from suite.hardware.calibration import Calibration
from suite.hardware.collective_calibration import CollectiveTimeError, measure_collectives

#: seconds of timing a case, and at most, for each number of ranks at once and for collectives; a few rounds of all are
#: taken in any case
A_CASE_S, OPERATORS_S, COLLECTIVES_S = 0.5, 12.0, 4.0


class ServingCalibrationError(RuntimeError):
    """A measuring process failed; one line says how."""


def can_calibrate_serving(case: Case) -> bool:
    """Is it served on this machine's CPU, with parts that are timed?"""
    return case.serves and case.cluster.device == "cpu" and not serving_untimed(case)


def calibrate_serving(
    cases: Sequence[Case], found: Calibration | None = None, tell: Callable[[object], None] = tell
) -> Calibration:
    """What these served cases' passes are made of, never a pass; beside what is found already of other cases.

    Raises ServingCalibrationError, in one line, where a measuring process fails.
    """
    start, wanted, wished = time.monotonic(), serving_wanted(cases, available_cores()), A_CASE_S * len(cases)
    try:
        for crowd, passes in sorted(wanted.passes.items()):
            tell(f"measuring the parts of {plural(len(passes), 'kind')} of pass of served models, with {crowd} ...")
            part = measure_serving(crowd, passes, wanted.cases, min(OPERATORS_S, wished))
            found = found or Calibration(part.machine)
            busiest = max(found.machine.other_cores, part.machine.other_cores)
            found = replace(
                found,
                machine=replace(found.machine, other_cores=busiest),
                served=(*found.served, *part.served),
                cores=(*found.cores, *part.cores),
                overheads=found.overheads | part.overheads,
            )
        assert found is not None  # there is a case
        missing = set(wanted.exchanges) - {each.exchange for each in found.collectives}
        if missing:
            tell(f"measuring {plural(len(missing), 'collective')} of served models ...")
            times, _ = measure_collectives(sorted(missing), min(COLLECTIVES_S, wished))
            found = replace(found, collectives=(*found.collectives, *times))
    except (OperatorTimeError, CollectiveTimeError) as error:
        raise ServingCalibrationError(str(error)) from None
    created = found.created or datetime.now(UTC).isoformat(timespec="seconds")
    return replace(found, created=created, seconds=round(found.seconds + time.monotonic() - start, 1))
