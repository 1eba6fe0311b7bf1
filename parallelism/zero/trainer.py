"""The training step that DeepSpeed's engine runs: forward, backward, reduction, clipping and update."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from parallelism.batches import Batch
from parallelism.clipping import clip_gradients
from parallelism.optimizers import build_optimizer
from parallelism.training import Trainer
from parallelism.zero.config import deepspeed_config, is_clipped_by_engine
from parallelism.zero.engine_state import held_tensors
from suite import memory_probe as phases
from suite.case import Case
from suite.record import Component
from suite.spec import Precision

#: torch's own, before any engine has put DeepSpeed's in its place
LINEAR = torch.nn.functional.linear


def import_deepspeed(device_type: str) -> Any:
    """DeepSpeed, told which accelerator to drive before its first import decides, and to keep quiet.

    On the CPU it would compile a shared-memory all-reduce for inference when its communication starts: not wanted.
    """
    os.environ["DS_ACCELERATOR"] = device_type
    import deepspeed

    # what initialize would import: torch's compiler, which cannot be once torch.export is there (torch 2.13)
    import deepspeed.runtime.zero.muon.muon_optimizer

    deepspeed.utils.logger.setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # its calls by the names that torch 2.13 renamed would be told of once each
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.", category=FutureWarning)
    return deepspeed


@dataclass(frozen=True)
class DeepSpeedTrainer(Trainer):
    """`model` is DeepSpeed's engine around the model, `optimizer` the torch optimizer inside it.

    The engine counts micro-batches itself: its step() acts on the last one and only counts on the others.
    """

    @property
    def engine(self) -> Any:
        """The engine, with DeepSpeed's own methods."""
        return self.model

    def forward_backward(self, batch: Batch) -> Tensor:
        """Gradients of the batch's mean loss, which the engine divides, accumulates and reduces when its stage has to;
        the mean loss of this rank."""
        losses = []
        for index in range(len(batch)):
            if index:
                self.engine.step()  # counts the micro-batch before this one
            self.mark(phases.FORWARD)
            loss = self._loss(batch, index)
            self.mark(phases.BACKWARD)
            self.engine.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def clip_and_update(self) -> Tensor:
        """The engine's step on the last micro-batch: clip, update, spread the new parameters; the norm before."""
        own = None if is_clipped_by_engine(self.case) else self.clip()
        self.engine.step()
        norm = self.engine.get_global_grad_norm() if own is None else own
        return torch.as_tensor(norm, device=self.device)

    def clip(self) -> Tensor:
        """Stage 0 in fp32 alone, where every rank holds every gradient."""
        return clip_gradients(self.model.parameters(), self.case.recipe.clip_norm)

    def state(self) -> dict[Component, list[Tensor]]:
        """The engine's own tensors."""
        return held_tensors(self)

    def close(self) -> None:
        """Let go of the engine. DeepSpeed keeps a stage 3 model and its state reachable for good (a list of modules in
        parameter_offload, a cache of the class that gathers parameters), so their memory is given back by hand. And it
        leaves its own F.linear in torch, which keeps other tensors than torch's, for whatever runs next."""
        held = self.state()
        self.engine.destroy()
        _forget_groups()
        torch.nn.functional.linear = LINEAR
        for tensors in held.values():
            for tensor in tensors:
                tensor.untyped_storage().resize_(0)

    def autocast(self) -> Any:
        """Never: DeepSpeed's bf16 has bf16 parameters."""
        return torch.autocast(self.device.type, enabled=False)


def _forget_groups() -> None:
    """DeepSpeed remembers the process groups that it was given first; the next case of a launch has others."""
    import deepspeed

    deepspeed.comm.comm.cdb = None
    deepspeed.utils.groups._WORLD_GROUP = None


def make_deepspeed_trainer(
    model: nn.Module, case: Case, device: torch.device, mark: Callable[[str], None] = lambda name: None,
    mesh: DeviceMesh | None = None,
) -> DeepSpeedTrainer:  # fmt: skip
    """An engine around a bare (or checkpointed) model, over all ranks of the process group that is there.

    Every rank has built the same weights; DeepSpeed broadcasts rank 0's once more.
    """
    deepspeed = import_deepspeed(device.type)
    os.environ.setdefault("LOCAL_RANK", str(dist.get_rank()))  # torchrun sets it; DeepSpeed insists on it
    # DeepSpeed's stage 0 in bf16 takes a step with zero gradients to make the optimizer's state, which would decay
    # the masters, start SGD's momentum and count for AdamW: no learning rate, and a fresh state after it
    still = replace(case, recipe=replace(case.recipe, learning_rate=0.0))
    optimizer = build_optimizer(model, still)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config(case))
    if case.layout.zero == 0 and case.workload.precision is Precision.BF16_MIXED:
        optimizer.state.clear()
    return DeepSpeedTrainer(case, engine, optimizer, device, mark, mesh)
