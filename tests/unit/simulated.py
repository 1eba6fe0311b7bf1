"""Steps planned by hand, for the tests of what a simulation says: times that can be checked on paper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from parallelism.schedules.orders import order_of
from parallelism.simulator.machine import Machine, Simulator
from parallelism.simulator.plan import NOTHING, Cost, Part, StagePlan, StepPlan, Unit
from parallelism.simulator.simulation import Simulation, simulate
from suite.case import Case, case_from
from suite.hardware import MatmulDtype, device
from suite.hardware.curve import Curve
from suite.hardware.fabric import Fabric, Level
from suite.hardware.speeds import Speeds

#: 10 FLOP/s, so to say: a pass of a block that takes a second takes 1/1.1 s with 10 % more
RATE = 10.0
LINK = 100.0
BLOCK, SENT, GATHERED, REDUCED = 10.0, 50.0, 25.0, 50.0


def case_of(layout: dict[str, Any] | None = None, **workload: Any) -> Case:
    """A small decoder on H100s."""
    data = {"model": "llama-1m", "layout": layout or {}, "workload": {"seq_len": 256, **workload}}
    return case_from(data | {"cluster": {"device": "h100-sxm"}})


def machine_of(case: Case) -> Machine:
    """10 FLOP/s and 100 bytes/s."""
    speeds = Speeds("h100-sxm", {MatmulDtype.BF16: Curve.flat(RATE, "by hand")}, source="by hand")
    fabric = Fabric((Level("node", 8, LINK, 0.0, source="by hand"), Level("rail", 2**20, LINK, 0.0)))
    return Machine(device("h100-sxm"), speeds, fabric)


def plan_of(case: Case, machine: Machine | None) -> StepPlan:
    """A block a stage: BLOCK FLOPs a sequence forward, as many for inputs and weights; SENT bytes between stages. With
    fsdp, GATHERED and REDUCED bytes a block."""
    layout, each, machine = case.layout, case.workload.micro_batch, machine or machine_of(case)
    pass_ = Cost(BLOCK * each / machine.speeds.matmul[MatmulDtype.BF16].at(1.0))
    link = machine.fabric.levels[0].bytes_per_second
    sharded = layout.fsdp > 1
    gather, reduce = (GATHERED / link, REDUCED / link) if sharded else (0.0, 0.0)
    unit = Unit("block", pass_, pass_, pass_, gather=gather, reduce=reduce)
    orders = tuple(order_of(layout, case.workload.micro_batches, rank) for rank in range(layout.pp))
    stage = StagePlan((unit,), SENT / link if layout.pp > 1 else 0.0)
    return StepPlan(orders, (stage,) * layout.stages, (NOTHING,) * layout.pp)


BY_HAND = Simulator(machine_of, plan_of)


def two_stages(send: float = 0.0) -> Simulation:
    """1F1B, 2 ranks, 2 micro-batches, F = 1 s, B = 2 s: (m + p - 1) * 3 = 9 s."""
    case = case_of({"pp": 2}, micro_batches=2)
    plan = plan_of(case, machine_of(case))
    return simulate(case, replace(plan, stages=tuple(replace(stage, send=send) for stage in plan.stages)), "by hand")


def big(pp: int = 8, micro_batches: int = 32, units: int = 8, schedule: str = "1f1b", virtual: int = 1) -> Simulation:
    """A pipeline of sharded blocks with every kind of part, to look at."""
    layout = {"pp": pp, "fsdp": 8, "reshard_after_forward": False, "schedule": schedule, "virtual_stages": virtual}
    case = case_from(
        {
            "model": "llama3-8b" if pp * virtual <= 32 else "llama3-405b",
            "layout": layout,
            "workload": {"seq_len": 8192, "micro_batches": micro_batches},
            "cluster": {"device": "h100-sxm", "per_node": 8, "nodes": pp},
        }
    )
    blocking = ((Part.TENSOR, 0.4e-3),)
    unit = Unit(
        "block",
        Cost(3e-3, 2e-3, blocking),
        Cost(3e-3, 2e-3, blocking),
        Cost(2.8e-3),
        rerun=Cost(1e-3),
        gather=2.4e-3,
        reduce=5e-3,
    )
    units_ = tuple(replace(unit, name=f"block {place}") for place in range(units))
    orders = tuple(order_of(case.layout, micro_batches, rank) for rank in range(pp))
    stages = (StagePlan(units_, 1.5e-3),) * case.layout.stages
    plan = StepPlan(orders, stages, (Cost(20e-3),) * pp, agree=1e-3, slowdown=1.1)
    return simulate(case, plan, "made up")
