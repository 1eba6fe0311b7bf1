"""Data parallel: torch's DistributedDataParallel. Every rank holds everything; gradients are averaged in buckets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallelism.base import Strategy
from parallelism.mesh import replica_mesh
from suite.layout import Layout

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case


def bucket_bytes(parameter_bytes: int) -> int:
    """Bytes of the flat buckets that DDP keeps for its all-reduces: one more copy of the gradients.

    Counted: every bucket, whatever its cap, since together they hold each gradient once. Not counted: gloo's
    or NCCL's own buffers. gradient_as_bucket_view=True would save this copy; torch's default does not.
    Source: torch/csrc/distributed/c10d/reducer.cpp, initialize_buckets.
    """
    return parameter_bytes


def apply(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Wrap the model. Its weights come from one seed, so DDP need not broadcast them first; its buffers are
    constants (rotary tables), so DDP need not broadcast them before every step, as it would."""
    from torch.nn.parallel import DistributedDataParallel

    assert mesh is not None
    wrapped = DistributedDataParallel(model, device_mesh=replica_mesh(mesh, case.layout), init_sync=False)
    wrapped.broadcast_buffers = False  # torch 2.11 to 2.13 differ in the argument's name
    return wrapped


def _is_used(layout: Layout) -> bool:
    return layout.replica_ranks > 1 and layout.fsdp == 1 and not layout.is_deepspeed


DDP = Strategy(
    name="ddp",
    axis="dp",
    divides=frozenset(),
    overheads="flat buckets, one more copy of the gradients",
    sends="all-reduce of the gradients, once a step",
    is_used=_is_used,
    apply=apply,
    example={"dp": 2},
)
