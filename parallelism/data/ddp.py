"""Data parallel: torch's DistributedDataParallel. Every rank holds everything; gradients are averaged in buckets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from parallelism.base import Strategy
from parallelism.data import replicate
from parallelism.mesh import replica_mesh
from suite.collectives import Collective, Message
from suite.formats import formats_of
from suite.layout import Layout, Reduction

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case
    from suite.operators import Ledger

#: torch's defaults; the first is small, so that sending starts early
FIRST_BUCKET_BYTES, BUCKET_BYTES = 2**20, 25 * 2**20


def bucket_bytes(parameter_bytes: int) -> int:
    """Bytes of the flat buckets that DDP keeps for its all-reduces: one more copy of the gradients.

    Counted: every bucket, whatever its cap, since together they hold each gradient once. Not counted: gloo's
    or NCCL's own buffers. gradient_as_bucket_view=True would save this copy; torch's default does not.
    Source: torch/csrc/distributed/c10d/reducer.cpp, initialize_buckets.
    """
    return parameter_bytes


def buckets(sizes: Iterable[int], limit: int = 0) -> list[int]:
    """Bytes of each bucket, for gradients of these sizes in the order in which they are made.

    A bucket is closed by the gradient that fills it to its limit, so it may be larger: `limit` bytes, or by default
    1 MiB for the first and 25 MiB for the others.
    Source: torch/csrc/distributed/c10d/reducer.cpp, compute_bucket_assignment_by_size.
    """
    closed: list[int] = []
    filled = 0
    for size in sizes:
        filled += size
        if filled >= (limit or (BUCKET_BYTES if closed else FIRST_BUCKET_BYTES)):
            closed.append(filled)
            filled = 0
    return [*closed, filled] if filled else closed


def messages(case: Case, ledger: Ledger, rank: int) -> tuple[Message, ...]:
    """An all-reduce of every bucket: once a step, or every micro-batch where the layout says so.

    Counted: every gradient, a tied one once; the sum is exact whatever the buckets. The buckets are those of the
    second step on, filled in the order of the backward pass, here the ledger's backwards: where a kernel makes two
    gradients in the other order a bucket's edge may lie elsewhere. Not counted: the first two steps' settling of it.
    """
    layout, element = case.layout, formats_of(case).gradients.nbytes
    reductions = case.workload.micro_batches if layout.reduction is Reduction.MICRO_BATCH else 1
    sizes = (
        weight.elements * element
        for placed in reversed(ledger.segments)
        for weight in reversed(placed.segment.weights)
        if not weight.tied_to
    )
    return tuple(
        Message(
            Collective.ALL_REDUCE, "dp", layout.replica_ranks, payload, count * reductions,
            "average the gradients, a bucket at a time", f"gradients of the bucket*{element}",
            "torch DDP: reducer.cpp, compute_bucket_assignment_by_size",
        )
        for payload, count in Counter(buckets(sizes, layout.bucket_mib * 2**20)).items()
    )  # fmt: skip


def apply(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Wrap the model. Its weights come from one seed, so DDP need not broadcast them first; its buffers are
    constants (rotary tables), so DDP need not broadcast them before every step, as it would."""
    from torch.nn.parallel import DistributedDataParallel

    assert mesh is not None
    wrapped = DistributedDataParallel(
        model,
        device_mesh=replica_mesh(mesh, case.layout),
        bucket_cap_mb=case.layout.bucket_mib or None,  # None: 25 MiB, the first 1 MiB
        init_sync=False,
    )
    wrapped.broadcast_buffers = False  # torch 2.11 to 2.13 differ in the argument's name
    return wrapped


def _is_used(layout: Layout) -> bool:
    is_own = not replicate.is_used(layout) and not layout.is_deepspeed
    return layout.replica_ranks > 1 and layout.fsdp == 1 and is_own


DDP = Strategy(
    name="ddp",
    axis="dp",
    divides=frozenset(),
    overheads="flat buckets, one more copy of the gradients",
    sends="all-reduce of the gradients, once a step",
    is_used=_is_used,
    apply=apply,
    messages=messages,
    example={"dp": 2},
)
