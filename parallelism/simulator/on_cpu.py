"""The simulator of cases on this machine's CPU, whose operators and collectives a calibration has measured."""

from __future__ import annotations

from functools import partial

from parallelism.simulator.cpu_plan import cpu_plan, interpolated
from parallelism.simulator.machine import Machine, Simulator
from parallelism.simulator.plan import StepPlan
from suite.case import Case
from suite.formats import formats_of
from suite.hardware.calibration import Calibration
from suite.models.ledgers import ledger_of
from suite.operators import Ledger
from suite.share import share_of
from suite.tape import Backend


def cpu_simulator(calibration: Calibration) -> Simulator:
    """Of any case whose operators and messages the calibration has."""
    return Simulator(_unknown_machine, partial(_plan_of, calibration=calibration), partial(_basis, calibration))


def _unknown_machine(case: Case) -> None:
    """Operators were timed whole: no rate stands behind them."""


def _plan_of(case: Case, machine: Machine | None, calibration: Calibration) -> StepPlan:
    return cpu_plan(case, _ledger(case), calibration)


def _ledger(case: Case) -> Ledger:
    """Of the first rank's share of the whole model."""
    return ledger_of(
        case.model, case.workload, case.layout.recompute, formats_of(case).numerics, Backend.CPU,
        share=share_of(case.layout, 0),
    )  # fmt: skip


def _basis(calibration: Calibration, case: Case) -> str:
    machine = calibration.machine
    others = interpolated(case, _ledger(case), calibration)
    said = f"; {len(others)} operators not at their own shape, as {others[0]}" if others else ""
    return (
        f"operators and collectives measured on this machine ({machine.cpu}, {machine.cores} cores,"
        f" torch {machine.torch}) on {calibration.created or 'an unknown day'}, no step among them{said}"
    )
