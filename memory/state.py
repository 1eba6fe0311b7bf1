"""What a rank holds between steps: parameters, buffers, gradients, optimizer state, buckets. Exact, to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parallelism.data.ddp import DDP, bucket_bytes
from parallelism.data.fsdp import padded_elements, shard_elements, shard_place
from parallelism.zero import redundancy as zero_redundancy
from parallelism.zero.redundancy import is_zero_redundancy
from parallelism.zero.state import Place, held
from suite.case import Case
from suite.formats import formats_of
from suite.layout import Offload
from suite.operators import Ledger, Weight
from suite.record import Component
from suite.spec import OptimizerKind

POSITION_BYTES = 8  # int64
STEP_BYTES = 4  # AdamW's step counter, an fp32 scalar a tensor
MOMENTS = {OptimizerKind.ADAMW: 2, OptimizerKind.SGD: 1}
HAS_STEP = {OptimizerKind.ADAMW}


@dataclass(frozen=True, slots=True)
class Holding:
    """So many bytes of a component, why, and by whose word."""

    component: Component
    nbytes: int
    name: str
    formula: str
    source: str
    is_lazy: bool = False  # made in the first step, and kept


def parameter_shapes(ledger: Ledger) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(how often, shape) of every parameter that owns its storage."""
    for segment, count in ledger.counts.items():
        for weight in segment.weights:
            if not weight.tied_to:
                yield count, shape_of(weight)


def shape_of(weight: Weight) -> tuple[int, ...]:
    """A weight's shape in numbers."""
    return tuple(size.value for size in weight.shape)


def parameter_bytes(case: Case, ledger: Ledger) -> int:
    """Bytes of a rank's parameters, in their type; under FSDP the padded shard, the same on every rank; none where
    they are kept in host memory."""
    if _is_on_host(case):
        return 0
    ranks = case.layout.shard_ranks
    element = formats_of(case).parameters.nbytes
    return element * sum(count * padded_elements(shape, ranks) for count, shape in parameter_shapes(ledger))


def optimizer_bytes(case: Case, ledger: Ledger, rank: int) -> int:
    """Bytes of a rank's optimizer state.

    Counted: AdamW's two moments and one 4-byte step a tensor, SGD's momentum; on the unpadded shard. Not
    counted: Python's own objects, and what is in host memory.
    """
    if _is_on_host(case):
        return 0
    if is_zero_redundancy(case.layout):
        return zero_redundancy.optimizer_bytes(case, ledger, rank)
    ranks, kind = case.layout.shard_ranks, case.workload.optimizer
    place = shard_place(case.layout, rank)
    shapes = list(parameter_shapes(ledger))
    elements = sum(count * shard_elements(shape, ranks, place) for count, shape in shapes)
    steps = STEP_BYTES * sum(count for count, _ in shapes) if kind in HAS_STEP else 0
    return formats_of(case).optimizer.nbytes * MOMENTS[kind] * elements + steps


def _is_on_host(case: Case) -> bool:
    """Does FSDP2 keep shards, their gradients and the optimizer's state in host memory?"""
    return case.layout.fsdp > 1 and case.layout.offload is Offload.PARAMETERS


def holdings(case: Case, ledger: Ledger, rank: int) -> tuple[Holding, ...]:
    """What lives between two steps; gradients only where an engine keeps them."""
    if case.layout.is_deepspeed:
        return (*_held_by_engine(case, ledger, rank), *_held_by_loop(case, ledger))
    parameters, formats = parameter_bytes(case, ledger), formats_of(case)
    kept, state, sent = formats.parameters, formats.optimizer.nbytes, formats.gradients.nbytes
    shards = case.layout.shard_ranks
    sharded = f" / {shards}, rows padded" if shards > 1 else ""
    moments = MOMENTS[case.workload.optimizer]
    step = " + 4*tensors" if case.workload.optimizer in HAS_STEP else ""
    rows = [
        Holding(
            Component.PARAMETERS, parameters, "parameters", f"parameters*{kept.nbytes}{sharded}",
            f"{kept.label} weights",
        ),
        Holding(
            Component.OPTIMIZER, optimizer_bytes(case, ledger, rank), f"{case.workload.optimizer.value} state",
            f"parameters*{state}*{moments}{sharded and f' / {shards}'}{step}", "torch.optim, one state a parameter",
            is_lazy=True,
        ),
        *_held_by_loop(case, ledger),
    ]  # fmt: skip
    if DDP.is_used(case.layout):
        rows.append(
            Holding(
                Component.COMMUNICATION, bucket_bytes(parameters), "DDP buckets", f"parameters*{sent}",
                "c10d reducer.cpp: flat buckets beside the gradients unless gradient_as_bucket_view",
            )
        )  # fmt: skip
    if case.layout.cp > 1:
        tokens = case.workload.seq_len // case.layout.cp
        rows.append(
            Holding(
                Component.COMMUNICATION, tokens * POSITION_BYTES, "positions of this rank's tokens", "s/cp*8",
                "int64, parallelism/context/strategy.py",
            )
        )  # fmt: skip
    return tuple(row for row in rows if row.nbytes)


def _held_by_loop(case: Case, ledger: Ledger) -> tuple[Holding, ...]:
    """What every engine leaves as it is: inputs and the module's buffers."""
    batch = case.workload.micro_batches * sum(array.nbytes for array in ledger.batch)
    source = "int64, held by the training loop"
    return (
        Holding(Component.INPUTS, batch, "token ids and labels", "m*b*s*8*2", source),
        *(Holding(Component.BUFFERS, item.nbytes, item.name, item.formula, "module buffer") for item in ledger.buffers),
    )


def _held_by_engine(case: Case, ledger: Ledger, rank: int) -> tuple[Holding, ...]:
    """What DeepSpeed's engine keeps in this device's memory; the CPU's is the host's."""
    is_host = case.cluster.device == "cpu"
    return tuple(
        Holding(row.component, row.nbytes, row.name, row.formula, row.source, row.is_lazy)
        for row in held(case, ledger, rank)
        if is_host or row.place is Place.DEVICE
    )


def optimizer_transient(case: Case, ledger: Ledger, rank: int) -> Holding | None:
    """What the optimizer's step allocates in passing: nothing where it is one fused kernel.

    torch has no fused SGD for DTensors, so under FSDP and tensor parallelism its loop runs: a decayed gradient is a new
    tensor, one parameter at a time, and the largest counts (torch/optim/sgd.py, _single_tensor_sgd).
    """
    ranks, has_dtensors = case.layout.shard_ranks, case.layout.fsdp > 1 or case.layout.tp > 1
    if case.workload.optimizer is not OptimizerKind.SGD or not has_dtensors or not case.recipe.weight_decay:
        return None
    if _is_on_host(case):
        return None
    decayed = (shape for _, shape in parameter_shapes(ledger) if len(shape) >= 2)
    place = shard_place(case.layout, rank)
    largest = max(shard_elements(shape, ranks, place) for shape in decayed)
    element = formats_of(case).gradients.nbytes
    formula = f"largest decayed shard*{element}"
    return Holding(Component.TRANSIENTS, largest * element, "decayed gradient", formula, "torch/optim/sgd.py")
