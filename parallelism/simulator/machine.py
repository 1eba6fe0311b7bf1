"""Machine: the speeds and links that a step's times rest on; Simulator: how a case becomes a simulation on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from parallelism.simulator.engine import Deadlock
from parallelism.simulator.plan import StepPlan
from parallelism.simulator.simulation import Simulation, simulate
from suite.case import Case
from suite.hardware.device import Device
from suite.hardware.fabric import Fabric
from suite.hardware.speeds import Speeds
from suite.parse import SpecError


@dataclass(frozen=True)
class Machine:
    """A device's datasheet and its achieved speeds, and the links between devices."""

    device: Device
    speeds: Speeds
    fabric: Fabric

    @property
    def basis(self) -> str:
        """Where they come from, in words."""
        links = (f"{level.name}: {level.source}" for level in self.fabric.levels if level.source)
        return "; ".join([self._speeds_source, *links])

    @property
    def _speeds_source(self) -> str:
        return f"{self.device.product}: {self.speeds.source or 'shares of its datasheet'}"


@dataclass(frozen=True)
class Simulator:
    """Simulates cases. `machine_of` finds what a case runs on: None where its times were measured on the spot and no
    figure of a machine stands behind them; `plan_of` says what a step of it does there, `basis_of` where that comes
    from in words (None: from what the machine says)."""

    machine_of: Callable[[Case], Machine | None]
    plan_of: Callable[[Case, Machine | None], StepPlan]
    basis_of: Callable[[Case], str] | None = None

    def __call__(self, case: Case, machine: Machine | None = None) -> Simulation:
        """A step of the case, on another machine than its own where one is given. SpecError for what cannot run."""
        machine = self.machine_of(case) if machine is None else machine
        return self.run(case, self.plan_of(case, machine), machine)

    def run(self, case: Case, plan: StepPlan, machine: Machine | None = None) -> Simulation:
        """The case by a plan that is at hand. SpecError for what cannot run."""
        basis = self.basis_of(case) if self.basis_of else machine.basis if machine else ""
        try:
            return simulate(case, plan, basis)
        except Deadlock as error:
            layout = case.layout
            raise SpecError(
                f"layout.schedule: {layout.schedule} cannot run {layout.stages} stages on {layout.pp} ranks with"
                f" {case.workload.micro_batches} micro-batches: {error}"
            ) from None
