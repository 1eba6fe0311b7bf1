"""A Megatron-LM run, a device's rates and a cluster's links -> the plan that the engine runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum, auto

from parallelism.megatron.parameters import stage_parameters
from parallelism.megatron.run import MegatronRun
from parallelism.simulator.megatron.block import E
from parallelism.simulator.megatron.links import Axis
from parallelism.simulator.megatron.orders import chunk_layers, orders_of, pipeline_layout, ranks_wait_for_all
from parallelism.simulator.megatron.state import gather_calls, reduce_calls, tied_call, update_work
from parallelism.simulator.megatron.timed import LayerKind, Machine, TensorOverlap, unit_of
from parallelism.simulator.plan import Cost, Issue, Part, StagePlan, StepPlan, Unit
from suite.collectives import Call, Collective


class Reduction(StrEnum):
    """When gradients are reduced over the replicas."""

    AT_END = auto()  # after the last backward pass, all at once
    OVERLAPPED = auto()  # bucket by bucket beside the last backward pass (--overlap-grad-reduce)


class Sends(StrEnum):
    """How a stage's output reaches the next."""

    BESIDE = auto()  # on a stream of its own
    BLOCKING = auto()  # sender and receiver wait (p2p_communication.py without overlap_p2p_comm)


@dataclass(frozen=True)
class Options:
    """What a run leaves to its launch command, and that memory does not depend on."""

    reduction: Reduction = Reduction.AT_END
    tensor: TensorOverlap = TensorOverlap.BLOCKING
    sends: Sends = Sends.BESIDE
    scatters_sends: bool = True
    """a tensor-parallel rank sends its part alone to the next stage, which gathers (arXiv:2104.04473, section 4.1)"""


DEFAULT = Options()


def step_plan(run: MegatronRun, machine: Machine, options: Options = DEFAULT) -> StepPlan:
    """Stages, orders and the update of one step. SpecError for a schedule that cannot run with those stages."""
    stages = stage_plans(run, machine, options)
    is_at_end = options.reduction is Reduction.AT_END
    return StepPlan(
        orders_of(run, stages),
        stages,
        tuple(finish_cost(run, machine, place) for place in range(run.pp)),
        agree=agree_seconds(run, machine) if ranks_wait_for_all(run) else 0.0,
        reductions=Issue.AT_END if is_at_end else Issue.STREAMS,
    )


def stage_plans(run: MegatronRun, machine: Machine, options: Options = DEFAULT) -> tuple[StagePlan, ...]:
    """Every stage in forward order; those with the same work and parameters are one object."""
    layout = pipeline_layout(run)
    made: dict[tuple[object, ...], tuple[Unit, ...]] = {}
    stages = []
    for stage in range(layout.stages):
        place = min(stage, layout.stages - 1 - stage) if layout.schedule.is_v else stage % layout.pp
        blocks = chunk_layers(run, layout, stage)
        key = (blocks, stage == 0, stage == layout.stages - 1)
        if key not in made:
            made[key] = _units(run, machine, options, place, *key)
        stages.append(StagePlan(made[key], send_seconds(run, machine, options, place)))
    return _waiting(stages) if options.sends is Sends.BLOCKING else tuple(stages)


def _waiting(stages: list[StagePlan]) -> tuple[StagePlan, ...]:
    """Stages that hold still while they send: forward after the last unit, backward after the first."""

    def sending(seconds: float) -> Cost:
        return Cost(blocking=((Part.PIPELINE, seconds),)) if seconds else Cost()

    found = []
    for place, stage in enumerate(stages):
        units = list(stage.units)
        down = stage.send if place < len(stages) - 1 else 0.0
        up = stages[place - 1].send if place else 0.0
        units[-1] = replace(units[-1], forward=units[-1].forward + sending(down))
        units[0] = replace(units[0], inputs=units[0].inputs + sending(up))
        found.append(StagePlan(tuple(units)))
    return tuple(found)


def _units(
    run: MegatronRun, machine: Machine, options: Options, place: int, blocks: int, is_first: bool, is_last: bool
) -> tuple[Unit, ...]:
    """Embedding on the first stage, blocks, head with loss on the last, with the reduction of their gradients."""
    parts = stage_parameters(run, place)
    units: list[Unit] = []
    if is_first:
        own = parts["embedding"] + parts.get("positions", 0)
        units.append(_reduced(unit_of(LayerKind.EMBEDDING, run, machine, overlap=options.tensor), own, run, machine))
    if blocks:
        block = unit_of(LayerKind.BLOCK, run, machine, run.recompute, options.tensor)
        each = parts["blocks"] // run.stage_layers[place]
        if options.reduction is Reduction.OVERLAPPED:
            units += [_reduced(block, each, run, machine)] * blocks
        else:
            units.append(_reduced(_times(block, blocks), blocks * each, run, machine))
    if is_last:
        own = parts["final norm"] + parts.get("head", 0)
        units.append(_reduced(unit_of(LayerKind.HEAD, run, machine, overlap=options.tensor), own, run, machine))
    units[0] = replace(units[0], forward=units[0].forward + Cost(host=machine.rates.host_batch_s))
    return tuple(units) if run.pp == 1 else _synchronous(units)


def _times(unit: Unit, count: int) -> Unit:
    """So many alike as one."""
    passes = (unit.forward, unit.inputs, unit.weights, unit.rerun)
    forward, inputs, weights, rerun = (cost.times(count) for cost in passes)
    return Unit(f"{count} {unit.name}s", forward, inputs, weights, rerun)


def _reduced(unit: Unit, parameters: int, run: MegatronRun, machine: Machine) -> Unit:
    """With the reduction of its gradients."""
    calls = reduce_calls(run, parameters)
    return replace(unit, reduce=sum(machine.links.seconds(call, Axis.DATA, run) for call in calls))


def _synchronous(units: list[Unit]) -> tuple[Unit, ...]:
    """A pipeline's sends wait for the device and are waited for (p2p_communication.py synchronises): the host cannot
    run ahead of a pass, and what it needs more than the device for one is then time of the device's."""

    def alone(cost: Cost) -> Cost:
        return Cost(cost.compute, 0.0, cost.blocking)

    found = [
        replace(
            unit, forward=alone(unit.forward), inputs=alone(unit.inputs), weights=alone(unit.weights),
            rerun=alone(unit.rerun),
        )
        for unit in units
    ]  # fmt: skip
    forward = _behind([unit.forward for unit in units])
    backward = _behind([cost for unit in units for cost in (unit.rerun, unit.inputs, unit.weights)])
    found[0] = replace(found[0], forward=found[0].forward + forward, inputs=found[0].inputs + backward)
    return tuple(found)


def _behind(costs: list[Cost]) -> Cost:
    """What the host needs more than the device."""
    behind = sum(cost.host for cost in costs) - sum(cost.seconds for cost in costs)
    return Cost(blocking=((Part.HOST, behind),)) if behind > 0 else Cost()


def send_seconds(run: MegatronRun, machine: Machine, options: Options, place: int) -> float:
    """The stream to the next stage; divided over the tensor-parallel ranks it is gathered there."""
    if run.pp == 1:
        return 0.0
    payload = E * run.stream_tokens * run.model.hidden
    if run.tp == 1 or run.sequence_parallel or not options.scatters_sends:
        return machine.links.seconds(Call(Collective.SEND, 2, payload), Axis.PIPELINE, run, place)
    part = machine.links.seconds(Call(Collective.SEND, 2, payload // run.tp), Axis.PIPELINE, run, place)
    return part + machine.links.seconds(Call(Collective.ALL_GATHER, run.tp, payload), Axis.TENSOR, run)


def finish_cost(run: MegatronRun, machine: Machine, place: int) -> Cost:
    """The update of a pipeline rank, the tied embedding's sum before it, gathered weights after it."""
    work, blocking = update_work(run, place), []
    if place in (0, run.pp - 1):
        blocking += [(Part.REDUCTION, machine.links.seconds(call, Axis.PIPELINE, run)) for call in tied_call(run)]
    gathered = gather_calls(run, sum(stage_parameters(run, place).values()))
    blocking += [(Part.GATHER, machine.links.seconds(call, Axis.DATA, run)) for call in gathered]
    return Cost(machine.rates.device_seconds(work), machine.rates.host_seconds(work), tuple(blocking))


def agree_seconds(run: MegatronRun, machine: Machine) -> float:
    """Clipping's norm and the check for overflow over all ranks of a replica: two small sums."""
    axis = Axis.PIPELINE if run.pp > 1 else Axis.TENSOR
    return 2 * machine.links.seconds(Call(Collective.ALL_REDUCE, run.tp * run.pp, 4), axis, run)
