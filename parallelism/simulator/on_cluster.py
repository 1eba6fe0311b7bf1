"""The simulator of cases on clusters: datasheets, achieved speeds where known, and the links of each device."""

from __future__ import annotations

from functools import partial

from parallelism.simulator.case_plan import case_plan
from parallelism.simulator.collective_time import message_seconds
from parallelism.simulator.kernel_time import GpuPricing, Rates
from parallelism.simulator.machine import Machine, Simulator
from parallelism.simulator.plan import StepPlan
from suite.case import Case
from suite.collectives import Message
from suite.hardware import device
from suite.hardware.links import fabric_of
from suite.hardware.speeds import Speeds


def machine_of(case: Case) -> Machine:
    """What a case runs on. SpecError for a device or links that are not known."""
    found = device(case.cluster.device)
    return Machine(found, Speeds(found.name), fabric_of(case))


def plan_of(case: Case, machine: Machine | None) -> StepPlan:
    """A step of the case on the machine, or its own, kernels issued one by one."""
    machine = machine or machine_of(case)
    pricing = GpuPricing(Rates(machine.device, machine.speeds))
    return case_plan(case, pricing, partial(_seconds, case=case, machine=machine), machine.speeds.slowdown)


def _seconds(message: Message, case: Case, machine: Machine) -> float:
    return message_seconds(message, case, machine.fabric)


#: of any case that can be timed
ON_CLUSTER = Simulator(machine_of, plan_of)
