"""Which simulator a case takes: published figures on a GPU, a calibration on this machine's CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallelism.simulator.kernel_time import Execution
from parallelism.simulator.machine import Simulator
from parallelism.simulator.on_cluster import cluster_simulator
from suite.case import Case
from suite.parse import SpecError

if TYPE_CHECKING:
    from suite.hardware.calibration import Calibration


def simulator_of(case: Case, calibration: Calibration | None, execution: Execution = Execution.EAGER) -> Simulator:
    """What simulates a case. SpecError for a case on the CPU without a calibration."""
    if case.cluster.device != "cpu":
        return cluster_simulator(execution)
    if calibration is None:
        raise SpecError(
            "cluster.device: cpu has no datasheet; measure it with `calibrate` and name the file: --calibration FILE"
        )
    from parallelism.simulator.on_cpu import cpu_simulator  # here, because a GPU's step does not need it

    return cpu_simulator(calibration)
