"""A Megatron-LM run, a device's rates and a cluster's links -> the plan that the engine runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, auto
from functools import cache

from parallelism.megatron.parameters import stage_parameters
from parallelism.megatron.run import MegatronRun
from parallelism.simulator.megatron.block import E, block_layer
from parallelism.simulator.megatron.ends import embedding_layer, head_layer
from parallelism.simulator.megatron.links import Axis, Links
from parallelism.simulator.megatron.orders import chunk_layers, layout_of, orders_of, ranks_wait_for_all
from parallelism.simulator.megatron.rates import KernelRates
from parallelism.simulator.megatron.shape import Shape
from parallelism.simulator.megatron.state import gather_calls, reduce_calls, tied_call, update_work
from parallelism.simulator.megatron.work import NO_WORK, Layer, Work
from parallelism.simulator.plan import Cost, Issue, Part, StagePlan, StepPlan, Unit
from suite.collectives import Call, Collective
from suite.layout import Layout, RecomputeKind


class Reduction(StrEnum):
    """When gradients are reduced over the replicas."""

    AT_END = auto()  # after the last backward pass, all at once
    OVERLAPPED = auto()  # bucket by bucket beside the last backward pass (--overlap-grad-reduce)


@dataclass(frozen=True)
class Machine:
    """What a run is timed on."""

    rates: KernelRates
    links: Links


class TensorOverlap(StrEnum):
    """When the tensor-parallel ranks talk."""

    BLOCKING = auto()  # compute waits for every collective
    BACKWARD = auto()  # one half of a backward product beside the other half's collective


@dataclass(frozen=True)
class Options:
    """What a run leaves to its launch command, and that memory does not depend on."""

    reduction: Reduction = Reduction.AT_END
    tensor: TensorOverlap = TensorOverlap.BLOCKING
    scatters_sends: bool = True
    """a tensor-parallel rank sends its part alone to the next stage, which gathers (arXiv:2104.04473, section 4.1)"""


def step_plan(run: MegatronRun, machine: Machine, options: Options = Options()) -> StepPlan:
    """Stages, orders and the update of one step. SpecError for a schedule that cannot run with those stages."""
    layout = layout_of(run)
    stages = tuple(stage_plan(run, machine, options, stage, layout) for stage in range(layout.stages))
    finish = tuple(finish_cost(run, machine, place) for place in range(run.pp))
    at_end = options.reduction is Reduction.AT_END
    return StepPlan(
        orders_of(run, stages), stages, finish, agree=agree_seconds(run, machine) if ranks_wait_for_all(run) else 0.0,
        reductions=Issue.AT_END if at_end else Issue.STREAMS,
    )  # fmt: skip


def stage_plan(run: MegatronRun, machine: Machine, options: Options, stage: int, layout: Layout) -> StagePlan:
    """Embedding on the first, blocks, head with loss on the last; gradients reduced with the units that make them."""
    place = stage % layout.pp if not layout.schedule.is_v else min(stage, layout.stages - 1 - stage)
    blocks = chunk_layers(run, layout, stage)
    shape, parts = Shape.of(run), stage_parameters(run, place)
    block = layer_unit("block", block_layer(shape), run, machine, options, run.recompute)
    each = parts["blocks"] // run.stage_layers[place] if run.stage_layers[place] else 0
    units = [*_blocks(block, blocks, each, run, machine, options)]
    if stage == 0:
        unit = layer_unit("embedding", embedding_layer(shape), run, machine, options)
        units.insert(0, with_reduce(unit, parts["embedding"] + parts.get("positions", 0), run, machine))
    if stage == layout.stages - 1:
        unit = layer_unit("head", head_layer(shape), run, machine, options)
        is_shared = run.model.tied and layout.stages == 1
        own = parts["final norm"] + (0 if is_shared else parts.get("head", 0))
        units.append(with_reduce(unit, own, run, machine))
    return StagePlan(tuple(units), send_seconds(run, machine, options, place))


def _blocks(
    block: Unit, count: int, parameters: int, run: MegatronRun, machine: Machine, options: Options
) -> list[Unit]:
    """One unit for all of them, or one each where reductions start in between."""
    if not count:
        return []
    if options.reduction is Reduction.OVERLAPPED:
        return [with_reduce(block, parameters, run, machine)] * count
    unit = Unit(
        "blocks", block.forward.times(count), block.inputs.times(count), block.weights.times(count),
        block.rerun.times(count),
    )  # fmt: skip
    return [with_reduce(unit, parameters * count, run, machine)]


@cache
def layer_unit(
    name: str, layer: Layer, run: MegatronRun, machine: Machine, options: Options = Options(),
    recompute: RecomputeKind = RecomputeKind.NONE,
) -> Unit:  # fmt: skip
    """Seconds of a layer's passes, and of what is run again before the backward ones."""
    again = {RecomputeKind.FULL: layer.forward, RecomputeKind.SELECTIVE: layer.core_forward}.get(recompute, NO_WORK)
    forward, rerun = work_cost(layer.forward, run, machine), work_cost(again, run, machine)
    hidden = [NO_HIDING] * 2
    if options.tensor is TensorOverlap.BACKWARD:
        hidden = [hidden_seconds(layer, run, machine, half) for half in (Half.INPUTS, Half.WEIGHTS)]
    inputs, weights = (
        work_cost(work, run, machine, behind)
        for work, behind in zip((layer.inputs, layer.weights), hidden, strict=True)
    )
    return Unit(name, forward, inputs, weights, rerun)


class Half(StrEnum):
    """Of a backward pass."""

    INPUTS = auto()
    WEIGHTS = auto()


NO_HIDING = 0.0


def hidden_seconds(layer: Layer, run: MegatronRun, machine: Machine, half: Half) -> float:
    """Of a half's collectives, what the other half's products hide (arXiv:2205.05198, section 4.2.2; Megatron-LM,
    LinearWithGradAccumulationAndAsyncCommunication).

    An input's gradient is summed over the ranks beside the product for the weights' gradient; what that product needs
    is gathered beside the product for the input's gradient. Only operators that have both. The product slows down
    meanwhile: that much of the collective is not hidden.
    """
    found = 0.0
    for operator in layer.operators:
        own, other = operator.inputs, operator.weights
        if half is Half.WEIGHTS:
            own, other = other, own
        is_sum = bool(own.calls) and own.calls[0].collective is not Collective.ALL_GATHER
        if own.kernels and other.kernels and own.calls and is_sum is (half is Half.INPUTS):
            talk = talk_seconds(own, run, machine) / machine.rates.beside_collective
            found += min(talk, machine.rates.device_seconds(other))
    return found


def talk_seconds(work: Work, run: MegatronRun, machine: Machine) -> float:
    """Its collectives over the tensor-parallel ranks, one after the other."""
    return sum(machine.links.seconds(call, Axis.TENSOR, run) for call in work.calls)


def work_cost(work: Work, run: MegatronRun, machine: Machine, hidden: float = 0.0) -> Cost:
    """Kernels on the device, their issue on the host, collectives of the tensor-parallel ranks in between but for
    `hidden` seconds of them.

    A pipeline's sends wait for the device and are waited for (p2p_communication.py synchronises), so the host cannot
    run ahead of a micro-batch: what it needs more than the device is then time of the device's.
    """
    device, host = machine.rates.device_seconds(work), machine.rates.host_seconds(work)
    talk = max(0.0, talk_seconds(work, run, machine) - hidden)
    blocking = ((Part.TENSOR, talk),) if talk else ()
    if run.pp == 1:
        return Cost(device, host, blocking)
    behind = max(0.0, host - device - talk)
    return Cost(device, 0.0, (*blocking, (Part.HOST, behind)) if behind else blocking)


def with_reduce(unit: Unit, parameters: int, run: MegatronRun, machine: Machine) -> Unit:
    """A unit with the reduction of its gradients."""
    seconds = sum(machine.links.seconds(call, Axis.DATA, run) for call in reduce_calls(run, parameters))
    return Unit(unit.name, unit.forward, unit.inputs, unit.weights, unit.rerun, reduce=seconds)


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
    work = update_work(run, place)
    parameters = sum(stage_parameters(run, place).values())
    blocking = []
    if place in (0, run.pp - 1):
        blocking += [(Part.REDUCTION, machine.links.seconds(call, Axis.PIPELINE, run)) for call in tied_call(run)]
    gathered = gather_calls(run, parameters)
    blocking += [(Part.GATHER, machine.links.seconds(call, Axis.DATA, run)) for call in gathered]
    return Cost(machine.rates.device_seconds(work), machine.rates.host_seconds(work), tuple(blocking))


def agree_seconds(run: MegatronRun, machine: Machine) -> float:
    """Clipping's norm and the check for overflow over all ranks of a replica: two small sums."""
    ranks = run.tp * run.pp
    axis = Axis.PIPELINE if run.pp > 1 else Axis.TENSOR
    return 2 * machine.links.seconds(Call(Collective.ALL_REDUCE, ranks, 4), axis, run)
