"""Fully sharded data parallel: torch's FSDP2, and with replicas of the shards HSDP. Parameters, gradients and optimizer
state are split along dimension 0; a block's parameters are gathered before they are used and freed after."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from parallelism.base import Strategy
from parallelism.mesh import expert_hsdp_mesh, expert_shard_mesh, hsdp_mesh, shard_mesh
from parallelism.schedules.gathers import Held, gathers
from parallelism.schedules.ledgers import stage_of_ledger
from suite.collectives import Collective, Message
from suite.formats import formats_of
from suite.layout import Layout, Offload, Reduction
from suite.record import Component
from suite.share import own_rows

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

    from suite.case import Case
    from suite.operators import Ledger, Weight

SOURCE = "FSDP2: torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py"

#: backward blocks that FSDP2 gathers ahead without being told: by the order in which forward ended
IMPLICIT_BACKWARD_PREFETCH = 1


def shard_rows(rows: int, ranks: int, rank: int) -> int:
    """How many rows of dimension 0 `rank` holds; the last ranks may hold fewer or none."""
    return len(own_rows(rows, ranks, rank))


def shard_elements(shape: tuple[int, ...], ranks: int, rank: int) -> int:
    """Elements of a parameter's shard, without padding: what the optimizer's state is made for."""
    return shard_rows(shape[0], ranks, rank) * math.prod(shape[1:])


def padded_elements(shape: tuple[int, ...], ranks: int) -> int:
    """Elements of a shard's storage: every rank's is padded to the first rank's."""
    return math.ceil(shape[0] / ranks) * math.prod(shape[1:])


def shard_place(layout: Layout, rank: int) -> int:
    """A rank's place among the shard_ranks that it shares parameters with; 0 where nothing is sharded."""
    if layout.fsdp == 1:
        return 0
    place = layout.place("fsdp", rank) * layout.ep + layout.place("ep", rank)
    return place * layout.cp + layout.place("cp", rank)


def weight_ranks(weight: Weight, layout: Layout) -> int:
    """Ranks that a rank's part of a parameter is sharded over: of experts that expert parallelism divides, fewer."""
    return layout.expert_shard_ranks if weight.is_expert else layout.shard_ranks


def weight_place(weight: Weight, layout: Layout, rank: int) -> int:
    """A rank's place among them."""
    place = shard_place(layout, rank)
    return place // (layout.ep * layout.cp) * layout.cp + place % layout.cp if weight.is_expert else place


def is_cut_across(shape: tuple[int, ...], ranks: int, is_expert: bool) -> bool:
    """Are experts sharded along dimension 1, an expert's own rows? Where there are fewer of them than ranks, which
    along dimension 0 would be padded to one for each (torchtitan does the same), and if the ranks divide the rows."""
    return is_expert and shape[0] < ranks and shape[1] % ranks == 0


def shard_shape(weight: Weight, layout: Layout, rank: int) -> tuple[int, ...]:
    """A rank's shard of its part of a parameter, without padding."""
    (rows, *rest), ranks = weight.values, weight_ranks(weight, layout)
    if is_cut_across(weight.values, ranks, weight.is_expert):
        return rows, rest[0] // ranks, *rest[1:]
    return shard_rows(rows, ranks, weight_place(weight, layout, rank)), *rest


def padded_shard(weight: Weight, ranks: int) -> int:
    """Elements of the storage of a rank's shard of its part of a parameter."""
    if is_cut_across(weight.values, ranks, weight.is_expert):
        return weight.elements // ranks
    return padded_elements(weight.values, ranks)


@dataclass(frozen=True)
class ShardedUnit:
    """Parameters that travel together, as often as the model has such a unit: a block, its experts where expert
    parallelism divides them, or the root with the rest."""

    name: str
    count: int
    elements: int  # on all ranks together, each rank's part padded to the first rank's
    ranks: int
    is_root: bool = False


def sharded_units(ledger: Ledger, layout: Layout) -> Iterator[ShardedUnit]:
    """The units of a model: its distinct blocks, each followed by its experts if they are a unit, then the root."""
    for segment in dict.fromkeys(placed.segment for placed in ledger.segments if placed.prefix):
        count = ledger.counts[segment]
        experts = [weight for weight in segment.weights if weight.is_expert]
        rest = [weight for weight in segment.weights if not weight.is_expert]
        yield ShardedUnit(segment.name, count, _padded(rest, layout.shard_ranks), layout.shard_ranks)
        if experts:
            ranks = layout.expert_shard_ranks
            yield ShardedUnit(f"the experts of {segment.name}", count, _padded(experts, ranks), ranks)
    rest = [weight for placed in ledger.segments if not placed.prefix for weight in placed.segment.weights]
    if rest:  # a pipeline's middle stage has blocks alone
        elements = _padded(rest, layout.shard_ranks)
        yield ShardedUnit("what is not in a block", 1, elements, layout.shard_ranks, is_root=True)


def _padded(weights: Iterable[Weight], ranks: int) -> int:
    return ranks * sum(padded_shard(weight, ranks) for weight in weights if not weight.tied_to)


def messages(case: Case, ledger: Ledger, rank: int) -> tuple[Message, ...]:
    """A rank's all-gathers and reduce-scatters of one step.

    Counted, padded rows included: a unit's parameters in the compute type, every micro-batch, once for its forward and,
    where the forward freed them, once more for its backward (the root's are kept; kept in n parts, they come from n
    ranks); its gradients, once a step or every micro-batch as the layout says; with replicas (HSDP) an all-reduce of
    each reduced shard over them, once a step in either case. Not counted: clipping's norm, which is the trainer's.
    Source: torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py, foreach_all_gather and foreach_reduce.
    """
    layout, micro_batches = case.layout, case.workload.micro_batches
    reductions = micro_batches if layout.reduction is Reduction.MICRO_BATCH else 1
    formats = formats_of(case)
    rows = []
    for unit in sharded_units(ledger, layout):
        for use, ranks, count in _gathers(case, ledger, unit):
            rows.append(gather_message(unit, ranks, formats.numerics.weights.nbytes, use, unit.count * count))
        rows += reduction_messages(layout, unit, formats.reduced.nbytes, reductions)
    return tuple(rows)


def _gathers(case: Case, ledger: Ledger, unit: ShardedUnit) -> list[tuple[str, int, int]]:
    """What a unit is gathered for in a step, from how many ranks, and how often."""
    layout, ranks = case.layout, unit.ranks
    freed = False if unit.is_root else layout.reshard_after_forward
    after_forward = Held.SHARD if freed is True else Held.PART if freed else Held.WHOLE
    if layout.pp > 1:
        often = gathers(case, stage_of_ledger(case, ledger), after_forward)
    else:
        often = Counter({("forward", Held.SHARD): case.workload.micro_batches})
        if after_forward is not Held.WHOLE:
            often["backward", after_forward] = case.workload.micro_batches
    return [(use, ranks if held is Held.SHARD else int(freed), count) for (use, held), count in often.items()]


def gather_message(unit: ShardedUnit, ranks: int, nbytes: int, use: str, count: int) -> Message:
    """A unit's parameters from so many ranks."""
    return Message(
        Collective.ALL_GATHER, "fsdp", ranks, unit.elements * nbytes, count,
        f"gather the parameters of {unit.name} for its {use}", f"parameters, rows padded*{nbytes}", SOURCE,
    )  # fmt: skip


def reduction_messages(layout: Layout, unit: ShardedUnit, nbytes: int, reductions: int) -> list[Message]:
    """A unit's gradients, so often a step: over the shards, then each shard over its replicas."""
    shards, replicas = unit.ranks, layout.replica_ranks
    return [
        Message(
            Collective.REDUCE_SCATTER, "fsdp", shards, unit.elements * nbytes, unit.count * reductions,
            f"reduce the gradients of {unit.name}", f"parameters, rows padded*{nbytes}", SOURCE,
        ),
        Message(
            Collective.ALL_REDUCE, "dp", replicas, unit.elements // shards * nbytes, unit.count,
            f"average the reduced gradients of {unit.name} over the replicas",
            f"parameters, rows padded*{nbytes} / fsdp", SOURCE,
        ),
    ]  # fmt: skip


def apply(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Shard every block, then what is left (embedding, final norm, head) as the root. In mixed precision parameters
    are gathered in the compute type; gradients are reduced in the layout's reduce_type. With dp > 1 the shards are
    replicated over dp (HSDP, arXiv:2304.11277, section 3.2.2). Resharding to n makes two process groups a block: FSDP2
    gives each its own mesh. With ep > 1 a block has two groups of parameters, gathered and reduced one after the
    other: its experts' over fsdp, the rest's over fsdp x ep."""
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    assert mesh is not None
    layout = case.layout
    shared: dict[str, Any] = {
        "mesh": hsdp_mesh(mesh, layout) if layout.dp > 1 else shard_mesh(mesh, layout),
        "mp_policy": _policy(case),
        "offload_policy": CPUOffloadPolicy() if layout.offload is Offload.PARAMETERS else OffloadPolicy(),
    }
    if layout.ep > 1:
        shared["shard_placement_fn"] = _expert_placement(mesh, layout)
    parts = (*cast("nn.ModuleDict", model.blocks).values(), *cast("nn.ModuleDict", getattr(model, "mtp", {})).values())
    blocks = [cast("FSDPModule", block) for block in parts]
    for block in blocks:
        fully_shard(cast("nn.Module", block), reshard_after_forward=layout.reshard_after_forward, **shared)
    fully_shard(model, reshard_after_forward=False, **shared)
    _set_prefetches(cast("FSDPModule", model), blocks, layout)
    return model


def _expert_placement(mesh: DeviceMesh, layout: Layout) -> Callable[[nn.Parameter], Any]:
    """Which parameters are sharded over another mesh: those that expert parallelism divides."""
    from torch.distributed.fsdp._fully_shard._fsdp_common import ShardPlacementResult
    from torch.distributed.fsdp._fully_shard._fsdp_init import _get_mesh_info
    from torch.distributed.tensor import DTensor, Shard

    from parallelism.data.expert_gradients import is_expert

    own = expert_hsdp_mesh(mesh, layout) if layout.dp > 1 else expert_shard_mesh(mesh, layout)
    info = cast("Any", _get_mesh_info(own))

    def placement(parameter: nn.Parameter) -> ShardPlacementResult | None:
        if not is_expert(parameter):
            return None
        shape = tuple(cast("DTensor", parameter).to_local().shape)
        return ShardPlacementResult(Shard(int(is_cut_across(shape, layout.expert_shard_ranks, True))), info)

    return placement


def _policy(case: Case) -> MixedPrecisionPolicy:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    from parallelism.dtypes import torch_dtype

    formats = formats_of(case)
    if formats.reduced is formats.parameters is formats.numerics.weights:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(torch_dtype(formats.numerics.weights), torch_dtype(formats.reduced))


def _set_prefetches(root: FSDPModule, blocks: list[FSDPModule], layout: Layout) -> None:
    """Tell each unit, the root first, which blocks to gather once it has its own parameters. FSDP2's own backward
    prefetch, of one block, is left alone; a unit that lists itself prefetches nothing, and an empty list would not do,
    for it leaves FSDP2 its own."""
    ahead, behind = layout.forward_prefetch, layout.backward_prefetch
    if ahead:
        for place, unit in enumerate([root, *blocks]):
            unit.set_modules_to_forward_prefetch(blocks[place : place + ahead])
    if behind != IMPLICIT_BACKWARD_PREFETCH:
        last_first = blocks[::-1]
        for place, unit in enumerate([root, *last_first]):
            unit.set_modules_to_backward_prefetch(last_first[place : place + behind] or [unit])


def _is_used(layout: Layout) -> bool:
    return layout.fsdp > 1


FSDP = Strategy(
    name="fsdp",
    axis="fsdp",
    divides=frozenset({Component.PARAMETERS, Component.GRADIENTS, Component.OPTIMIZER}),
    overheads="gathered blocks (the one in use and those gathered ahead), the reduce-scatter's input; with several"
    " micro-batches reduced once a step: whole gradients",
    sends="all-gather of the parameters in forward and again in backward, reduce-scatter of the gradients; with dp > 1"
    " (HSDP) an all-reduce of the shards' gradients",
    is_used=_is_used,
    apply=apply,
    messages=messages,
    example={"fsdp": 2},
)
