"""Which calibration times rest on: one that a file holds, one measured for a bench's own cases, or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reports.streams import tell
from suite.case import Case

if TYPE_CHECKING:
    from suite.hardware.calibration import Calibration

#: a run's own, in its folder
KEPT = "calibration.json"
NONE = "none"
#: benches of at most so many cases measure with few readings: half a minute for what they need
FEW_CASES = 4


def calibration_given(path: str | None) -> Calibration | None:
    """The one in the file that --calibration names; None where it names none. SpecError for what is no calibration."""
    if path in (None, NONE):
        return None
    from suite.hardware.calibration import read_calibration  # here, because most estimates need none

    return read_calibration(str(path))


def calibration_for(cases: Sequence[Case], path: str | None) -> Calibration | None:
    """What a bench of these cases predicts their times from: the file that was named, else this machine's operators
    and collectives, measured now at the shapes that the cases have. None, with a warning, where that fails."""
    from reports.calibrate import QUICK, WHOLE, CalibrationError, calibrate, can_calibrate
    from reports.calibrate_serving import ServingCalibrationError, calibrate_serving, can_calibrate_serving

    served = [case for case in cases if can_calibrate_serving(case)]
    local = [case for case in cases if not case.serves and can_calibrate(case)]
    if path is not None or not (local or served):
        return calibration_given(path)
    try:
        found = calibrate(local, QUICK if len(local) <= FEW_CASES else WHOLE) if local else None
        return calibrate_serving(served, found) if served else found
    except (CalibrationError, ServingCalibrationError) as error:
        tell(f"no calibration, so no time estimates: {error}")
        return None


def keep_calibration(calibration: Calibration | None, folder: Path) -> None:
    """Beside a run's records."""
    if calibration is not None:
        from suite.hardware.calibration import write_calibration

        write_calibration(calibration, folder / KEPT)


def kept_calibration(folder: Path) -> Calibration | None:
    """The one that a run was begun with. SpecError where its file is damaged."""
    path = folder / KEPT
    return calibration_given(str(path)) if path.exists() else None
