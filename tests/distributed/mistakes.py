"""Mistakes that a layout could make, planted into the code that the worker runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from parallelism.mesh import shard_mesh
from parallelism.strategies import parallelize
from parallelism.training import Trainer
from suite.case import Case
from suite.data import rank_slice
from suite.layout import RecomputeKind
from suite.models.decoder_module import Decoder

# --- in spreading the model ----------------------------------------------------------------------------------


def without_all_reduce(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """DDP whose buckets are handed back as they came."""
    model = parallelize(model, mesh, case)
    assert isinstance(model, DistributedDataParallel)
    model.register_comm_hook(None, lambda _, bucket: _settled(bucket.buffer()))
    return model


def _settled(value: Tensor) -> torch.futures.Future[Tensor]:
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(value)
    return future


def own_seed_on_every_rank(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Weights that each rank drew for itself; DDP, told not to broadcast, does not repair that."""
    assert isinstance(model, Decoder)
    torch.manual_seed(case.recipe.seed + dist.get_rank())
    model.reset_parameters()
    return parallelize(model, mesh, case)


def sum_instead_of_mean(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """FSDP that forgets to divide by the number of ranks."""
    model = parallelize(model, mesh, case)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            _sum(module)
    return model


def sum_in_one_block(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """FSDP that forgets it in the last block alone."""
    model = parallelize(model, mesh, case)
    last = model.get_submodule(f"blocks.{case.model.layers - 1}")
    assert isinstance(last, FSDPModule)
    _sum(last)
    return model


def _sum(module: FSDPModule) -> None:
    module.set_force_sum_reduction_for_comms(True)  # gloo knows no pre-multiplied sum
    module.set_gradient_divide_factor(1.0)


def gathered_for_good(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """FSDP that does not go back to the shards after backward, so that the optimizer's work is not seen."""
    model = parallelize(model, mesh, case)
    assert isinstance(model, FSDPModule)
    model.set_reshard_after_backward(False)
    return model


def without_replicas(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """HSDP whose replicas never meet: gradients are reduced over the shards' ranks alone."""
    with patch("parallelism.data.fsdp.hsdp_mesh", shard_mesh):
        return parallelize(model, mesh, case)


def rerun_with_other_weights(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """Checkpointing that recomputes a block with weights that are off by 1 in 1,000."""
    assert case.layout.recompute.kind is RecomputeKind.NONE
    block = model.get_submodule("blocks.0")
    run = block.forward

    def rerun() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _scaled(block, 1.001)

    block.forward = lambda *given: checkpoint(run, *given, use_reentrant=False, context_fn=rerun)  # type: ignore[assignment]
    return parallelize(model, mesh, case)


@contextmanager
def _scaled(module: nn.Module, factor: float) -> Iterator[None]:
    kept = [item.detach().clone() for item in module.parameters()]
    for item in module.parameters():
        item.data.mul_(factor)
    try:
        yield
    finally:
        for item, value in zip(module.parameters(), kept, strict=True):
            item.data.copy_(value)


def copied_head(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
    """A tied head that works on a copy, so that its half of the gradient is lost."""
    head = model.get_submodule("head")
    weight = model.get_parameter("embedding.weight").detach().clone()
    del head.weight
    head.register_buffer("weight", weight)
    return parallelize(model, mesh, case)


# --- in the step ---------------------------------------------------------------------------------------------


def forgets_to_divide(case: Case, *rest: Any) -> Trainer:
    """Accumulates the sum of the micro-batches' losses instead of their mean."""
    return Trainer(replace(case, workload=replace(case.workload, micro_batches=1)), *rest)


class ReducesTheFirst(Trainer):
    """Reduces after the first micro-batch, and not after the last."""

    def _synchronize_only_if(self, is_last: bool) -> Any:
        return super()._synchronize_only_if(not is_last)


class ForgetsTheFirst(Trainer):
    """Clears the gradients at every micro-batch."""

    def _micro_step(self, *given: Any, **named: Any) -> Tensor:
        self.optimizer.zero_grad()
        return super()._micro_step(*given, **named)


class ClipsByItsShard(Trainer):
    """Takes the norm of this rank's shards for the norm of the whole."""

    def clip(self) -> Tensor:
        parts = [item.grad for item in self.model.parameters()]
        return nn.utils.clip_grad_norm_(
            [_as_parameter(part) for part in parts if part is not None], self.case.recipe.clip_norm
        )


def _as_parameter(gradient: Tensor) -> nn.Parameter:
    local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    holder = nn.Parameter(torch.zeros_like(local))
    holder.grad = local
    return holder


class NeverClips(Trainer):
    """Reports the norm and leaves the gradients as they are."""

    def clip(self) -> Tensor:
        kept = [item.grad.clone() for item in self.model.parameters() if item.grad is not None]
        norm = super().clip()
        for item, value in zip(self.model.parameters(), kept, strict=True):
            item.grad = value
        return norm


# --- in the data ---------------------------------------------------------------------------------------------


def first_rank_slice(ids: np.ndarray, data_rank: int, data_ranks: int, micro_batches: int) -> np.ndarray:
    """The first rank's rows, whatever the rank."""
    return rank_slice(ids, 0, data_ranks, micro_batches)
