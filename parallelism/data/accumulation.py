"""Gradient accumulation: how each data-parallel wrapper is told to leave a micro-batch's gradients unreduced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from suite.layout import Layout, Reduction


def reduction_left_out(model: nn.Module, layout: Layout) -> AbstractContextManager[None]:
    """For every micro-batch but the last: what of its reduction the layout leaves to the last.

    Reduced once a step: all of it, so that whole gradients are kept, DDP's by no_sync and FSDP2's by its flag.
    Reduced every micro-batch: nothing, except that HSDP's shards are summed over the replicas once, since shards are
    all that is kept either way.
    """
    if isinstance(model, DistributedDataParallel):
        return model.no_sync() if layout.reduction is Reduction.STEP else nullcontext()
    if isinstance(model, FSDPModule):
        is_whole = layout.reduction is Reduction.STEP
        return _off(model.set_requires_gradient_sync if is_whole else model.set_requires_all_reduce)
    return nullcontext()


@contextmanager
def _off(switch: Callable[[bool], None]) -> Iterator[None]:
    switch(False)
    try:
        yield
    finally:
        switch(True)
