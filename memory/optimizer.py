"""What a rank's optimizer keeps between steps, and what its step allocates in passing. Torch-free."""

from __future__ import annotations

from memory.holding import Holding, is_on_host, parameter_shapes
from parallelism.data.fsdp import shard_elements, shard_place
from parallelism.zero import redundancy as zero_redundancy
from parallelism.zero.redundancy import is_zero_redundancy
from suite.case import Case
from suite.operators import Ledger
from suite.record import Component
from suite.spec import OptimizerKind

STATE_BYTES = 4  # fp32
STEP_BYTES = 4  # AdamW's step counter, an fp32 scalar a tensor
MOMENTS = {OptimizerKind.ADAMW: 2, OptimizerKind.SGD: 1}
HAS_STEP = {OptimizerKind.ADAMW}


def optimizer_bytes(case: Case, ledger: Ledger, rank: int) -> int:
    """Bytes of a rank's optimizer state.

    Counted: AdamW's two moments and one 4-byte step a tensor, SGD's momentum; on the unpadded shard. Not
    counted: Python's own objects, and what is in host memory.
    """
    if is_on_host(case):
        return 0
    if is_zero_redundancy(case.layout):
        return zero_redundancy.optimizer_bytes(case, ledger, rank)
    ranks, kind = case.layout.shard_ranks, case.workload.optimizer
    place = shard_place(case.layout, rank)
    shapes = list(parameter_shapes(ledger))
    elements = sum(count * shard_elements(shape, ranks, place) for count, shape in shapes)
    steps = STEP_BYTES * sum(count for count, _ in shapes) if kind in HAS_STEP else 0
    return STATE_BYTES * MOMENTS[kind] * elements + steps


def optimizer_holding(case: Case, ledger: Ledger, rank: int) -> Holding:
    """A rank's optimizer state as a row."""
    kind, shards = case.workload.optimizer, case.layout.shard_ranks
    sharded = f" / {shards}" if shards > 1 else ""
    step = " + 4*tensors" if kind in HAS_STEP else ""
    return Holding(
        Component.OPTIMIZER, optimizer_bytes(case, ledger, rank), f"{kind.value} state",
        f"parameters*4*{MOMENTS[kind]}{sharded}{step}", "torch.optim, one state a parameter", is_lazy=True,
    )  # fmt: skip


def optimizer_transient(case: Case, ledger: Ledger, rank: int) -> Holding | None:
    """What the optimizer's step allocates in passing: nothing where it is one fused kernel.

    torch has no fused SGD for DTensors, so under FSDP and tensor parallelism its loop runs: a decayed gradient is a new
    tensor, one parameter at a time, and the largest counts (torch/optim/sgd.py, _single_tensor_sgd).
    """
    ranks, has_dtensors = case.layout.shard_ranks, case.layout.fsdp > 1 or case.layout.tp > 1
    if case.workload.optimizer is not OptimizerKind.SGD or not has_dtensors or not case.recipe.weight_decay:
        return None
    if is_on_host(case):
        return None
    decayed = (shape for _, shape in parameter_shapes(ledger) if len(shape) >= 2)
    place = shard_place(case.layout, rank)
    largest = max(shard_elements(shape, ranks, place) for shape in decayed)
    formula = "largest decayed shard*4"
    return Holding(Component.TRANSIENTS, largest * STATE_BYTES, "decayed gradient", formula, "torch/optim/sgd.py")
