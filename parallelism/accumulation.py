"""Gradient accumulation: how each data-parallel wrapper is told to leave a micro-batch's gradients unreduced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def no_reduction(model: nn.Module) -> Iterator[None]:
    """Within it, backward passes reduce nothing: DDP's no_sync, and FSDP2's flag, with which whole gradients are kept
    until a backward pass outside of it reduces their sum."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    elif isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    else:
        yield
