"""One rank of a world that is not there: a process group whose collectives return at once, around fake tensors.

What runs under it is the code that trains, with four stand-ins, all of them for code that reads numbers on the host:
- device meshes are made of real tensors, which hold ranks, not data;
- DDP's reducer is torch's own, but its all-reduce is answered by a hook, since a fake one gives no tensors, and its
  buckets stay as they were first made: it settles their order by an exchange of numbers. Their bytes do not change;
- a number that the host reads from a fake tensor is 1 (pipeline stages vote so on whether their shapes are known);
- operators whose tensors are all real, such as dropout's keys, run for real.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import _disable_current_modes

#: what makes meshes, or looks one up
MESH_METHODS = ("__init__", "__getitem__", "_flatten", "get_coordinate", "get_local_rank")


@contextmanager
def fake_world(rank: int, ranks: int) -> Iterator[None]:
    """The default process group of this rank among so many, of torch's fake backend; none for a rank alone.

    Raises RuntimeError where the process has a default group already.
    """
    if ranks == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise RuntimeError("trace: this process has a process group of its own; trace in a process without one")
    hook = sys.excepthook
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield
    finally:
        gc.collect()  # a model's cycles hold groups
        _clear_sharding_prop_cache()  # of this world's meshes: the next one's may be equal and have other groups
        dist.destroy_process_group()
        sys.excepthook = hook  # torch's puts the rank before every line


@contextmanager
def stand_ins() -> Iterator[None]:
    """Inside, meshes are made of real tensors, and DDP's reducer leaves its buckets as they are."""
    with ExitStack() as stack:
        for name in MESH_METHODS:
            stack.enter_context(patch.object(DeviceMesh, name, _outside(getattr(DeviceMesh, name))))
        concatenate = staticmethod(_outside(DeviceMesh._concatenate))
        stack.enter_context(patch.object(DeviceMesh, "_concatenate", concatenate))
        stack.enter_context(patch.object(dist.Reducer, "_rebuild_buckets", lambda reducer: False))
        for name in ("send", "recv"):
            stack.enter_context(patch.object(dist.ProcessGroup, name, _holding(getattr(dist.ProcessGroup, name))))
        yield


def answer_reductions(model: nn.Module) -> None:
    """Give every DDP in a model a hook that answers for the other ranks."""
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            module.register_comm_hook(None, lambda state, bucket: _reduced(bucket))  # DDP reads annotations as objects


def _reduced(bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    answer: torch.futures.Future[Tensor] = torch.futures.Future()
    answer.set_result(bucket.buffer())
    return answer


def _holding(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, whose work keeps the tensors as long as it lives, as gloo's and NCCL's do."""

    def held(group: Any, tensors: list[Tensor], *given: Any) -> Any:
        work = call(group, tensors, *given)
        weakref.finalize(work, tensors.clear)
        return work

    return held


def _outside(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, outside every dispatch mode."""

    def call(*given: Any, **named: Any) -> Any:
        with _disable_current_modes():
            return method(*given, **named)

    return call
