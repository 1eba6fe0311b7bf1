"""Fully sharded data parallel: torch's FSDP2, and with replicas of the shards HSDP. Parameters, gradients and optimizer
state are split along dimension 0; a block's parameters are gathered before they are used and freed after."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from parallelism.base import Strategy
from parallelism.mesh import hsdp_mesh, shard_mesh
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
    return layout.place("fsdp", rank) * layout.cp + layout.place("cp", rank) if layout.fsdp > 1 else 0


@dataclass(frozen=True)
class ShardedUnit:
    """Parameters that travel together, as often as the model has such a unit: a block, or the root with the rest."""

    name: str
    count: int
    elements: int  # on all ranks together, each rank's part padded to the first rank's
    is_root: bool = False


def sharded_units(ledger: Ledger, ranks: int) -> Iterator[ShardedUnit]:
    """The units of a model over so many ranks: its distinct blocks, then the root."""
    for segment in dict.fromkeys(placed.segment for placed in ledger.segments if placed.prefix):
        elements = _padded(segment.weights, ranks)
        yield ShardedUnit(segment.name, ledger.counts[segment], elements)
    rest = [weight for placed in ledger.segments if not placed.prefix for weight in placed.segment.weights]
    if rest:  # a pipeline's middle stage has blocks alone
        yield ShardedUnit("what is not in a block", 1, _padded(rest, ranks), is_root=True)


def _padded(weights: Iterable[Weight], ranks: int) -> int:
    shapes = (tuple(size.value for size in weight.shape) for weight in weights if not weight.tied_to)
    return ranks * sum(padded_elements(shape, ranks) for shape in shapes)


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
    for unit in sharded_units(ledger, layout.shard_ranks):
        for use, ranks, count in _gathers(case, ledger, unit):
            rows.append(gather_message(unit, ranks, formats.numerics.weights.nbytes, use, unit.count * count))
        rows += reduction_messages(layout, unit, formats.reduced.nbytes, reductions)
    return tuple(rows)


def _gathers(case: Case, ledger: Ledger, unit: ShardedUnit) -> list[tuple[str, int, int]]:
    """What a unit is gathered for in a step, from how many ranks, and how often."""
    layout, ranks = case.layout, case.layout.shard_ranks
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
    shards, replicas = layout.shard_ranks, layout.replica_ranks
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
    gives each its own mesh."""
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    assert mesh is not None
    layout = case.layout
    shared: dict[str, Any] = {
        "mesh": hsdp_mesh(mesh, layout) if layout.dp > 1 else shard_mesh(mesh, layout),
        "mp_policy": _policy(case),
        "offload_policy": CPUOffloadPolicy() if layout.offload is Offload.PARAMETERS else OffloadPolicy(),
    }
    parts = (*cast("nn.ModuleDict", model.blocks).values(), *cast("nn.ModuleDict", getattr(model, "mtp", {})).values())
    blocks = [cast("FSDPModule", block) for block in parts]
    for block in blocks:
        fully_shard(cast("nn.Module", block), reshard_after_forward=layout.reshard_after_forward, **shared)
    fully_shard(model, reshard_after_forward=False, **shared)
    _set_prefetches(cast("FSDPModule", model), blocks, layout)
    return model


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
