"""Data parallel where DDP cannot be: gradients averaged over the replicas in flat buckets. Each rank averages its own
parts with the ranks that hold the same.

DDP takes no DTensors, and it reduces when a whole backward pass ends: a schedule that computes gradients of weights
apart does so by calls that DDP does not hear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parallelism.base import Strategy
from suite.layout import Layout

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from suite.case import Case

DEFAULT_BUCKET_MIB = 25  # DDP's


def bucket_cap_bytes(layout: Layout) -> int:
    """Most bytes of one all-reduce, unless a single gradient has more."""
    return (layout.bucket_mib or DEFAULT_BUCKET_MIB) * 2**20


def apply(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Nothing to wrap: weights come from one seed, and the trainer averages the gradients (`leftovers`)."""
    return model


def is_used(layout: Layout) -> bool:
    """Are there replicas whose gradients neither FSDP2 nor DDP reduces?"""
    is_split = layout.pp > 1 and layout.schedule.splits_backward
    return layout.replica_ranks > 1 and layout.fsdp == 1 and (layout.tp > 1 or is_split)


REPLICATE = Strategy(
    name="replicate",
    axis="dp",
    divides=frozenset(),
    overheads="one flat bucket of gradients at a time",
    sends="all-reduce of the gradients' parts, once a step, after the last micro-batch",
    is_used=is_used,
    apply=apply,
)
