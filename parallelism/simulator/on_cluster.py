"""The simulator of cases on clusters: datasheets, achieved speeds where known, and the links of each device."""

from __future__ import annotations

from functools import partial

from parallelism.simulator.case_plan import case_plan
from parallelism.simulator.collective_time import message_seconds
from parallelism.simulator.kernel_time import Execution, GpuPricing, Rates
from parallelism.simulator.machine import Machine, Simulator
from parallelism.simulator.plan import StepPlan
from suite.case import Case
from suite.collectives import Message
from suite.hardware import device
from suite.hardware.achieved import speeds_of
from suite.hardware.links import fabric_of


def cluster_simulator(execution: Execution = Execution.EAGER) -> Simulator:
    """Of any case on a GPU whose figures are known."""
    return Simulator(machine_of, partial(plan_of, execution=execution))


def machine_of(case: Case) -> Machine:
    """What a case runs on. SpecError for a device or links that are not known."""
    found = device(case.cluster.device)
    return Machine(found, speeds_of(found), fabric_of(case))


def plan_of(case: Case, machine: Machine | None, execution: Execution) -> StepPlan:
    """A step of the case on the machine, or on its own."""
    machine = machine or machine_of(case)
    pricing = GpuPricing(Rates(machine.device, machine.speeds), execution)
    return case_plan(case, pricing, partial(_seconds, case=case, machine=machine), machine.speeds.slowdown)


def _seconds(message: Message, case: Case, machine: Machine) -> float:
    """Of one call, in the slowest group."""
    return message_seconds(message, case, machine.fabric)
