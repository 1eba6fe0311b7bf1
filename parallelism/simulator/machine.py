"""Machine: the speeds and links that a step's times rest on; Simulator: how a case becomes a simulation on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from parallelism.simulator.engine import Deadlock
from parallelism.simulator.plan import StepPlan
from parallelism.simulator.simulation import Simulation, simulate
from suite.case import Case
from suite.hardware.device import Device, matmul_dtype
from suite.hardware.fabric import Fabric
from suite.hardware.speeds import Speeds
from suite.parse import SpecError


@dataclass(frozen=True)
class Machine:
    """A device's datasheet and its achieved speeds, and the links between devices."""

    device: Device
    speeds: Speeds
    fabric: Fabric

    def levels_of(self, case: Case) -> tuple[int, ...]:
        """Places of the links' levels that a case's ranks are spread over; none for a rank alone."""
        ranks, inner = case.layout.world_size, (1, *self.fabric.widths)
        return tuple(place for place in range(len(self.fabric.levels)) if ranks > inner[place] > 0)

    def basis(self, case: Case) -> str:
        """Where the figures that a case rests on come from, in words."""
        products = self.speeds.matmul.get(matmul_dtype(case.workload.precision))
        attention = self.speeds.attention.get(matmul_dtype(case.workload.precision))
        memory = self.speeds.memory
        sources = {"products": products and products.source, "attention": attention and attention.source}
        sources["memory"] = memory and memory.source
        if self.speeds.source not in sources.values():
            sources["beside them"] = self.speeds.source
        if not any(sources.values()):
            sources["rates"] = "shares of its datasheet"
        levels = [self.fabric.levels[place] for place in self.levels_of(case)]
        sources |= {level.name: level.source for level in levels}
        said = (f"{name}: {source}" for name, source in sources.items() if source)
        return "; ".join([self.device.product, *said])


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
        basis = self.basis_of(case) if self.basis_of else machine.basis(case) if machine else ""
        try:
            return simulate(case, plan, basis)
        except Deadlock as error:
            layout = case.layout
            raise SpecError(
                f"layout.schedule: {layout.schedule} cannot run {layout.stages} stages on {layout.pp} ranks with"
                f" {case.workload.micro_batches} micro-batches: {error}"
            ) from None
