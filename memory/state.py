"""What a rank holds between steps: parameters, buffers, gradients, optimizer state, buckets. Exact, to the byte."""

from __future__ import annotations

from memory.holding import Holding, is_on_host, padded_shards
from memory.optimizer import optimizer_holding
from parallelism.data.ddp import DDP, bucket_bytes
from parallelism.zero.state import Place, held
from suite.case import Case
from suite.formats import formats_of
from suite.operators import Ledger
from suite.record import Component

POSITION_BYTES = 8  # int64


def parameter_bytes(case: Case, ledger: Ledger) -> int:
    """Bytes of a rank's parameters, in their type; under FSDP the padded shard, the same on every rank; none where
    they are kept in host memory."""
    if is_on_host(case):
        return 0
    element = formats_of(case).parameters.nbytes
    return element * sum(count * elements for count, elements in padded_shards(ledger, case.layout))


def holdings(case: Case, ledger: Ledger, rank: int) -> tuple[Holding, ...]:
    """What lives between two steps; gradients only where an engine keeps them."""
    if case.layout.is_deepspeed:
        return (*_held_by_engine(case, ledger, rank), *_held_by_loop(case, ledger))
    parameters, formats = parameter_bytes(case, ledger), formats_of(case)
    kept, sent = formats.parameters, formats.gradients.nbytes
    shards = case.layout.shard_ranks
    sharded = f" / {shards}, rows padded" if shards > 1 else ""
    rows = [
        Holding(
            Component.PARAMETERS,
            parameters,
            "parameters",
            f"parameters*{kept.nbytes}{sharded}",
            f"{kept.label} weights",
        ),
        optimizer_holding(case, ledger, rank),
        *_held_by_loop(case, ledger),
    ]
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
