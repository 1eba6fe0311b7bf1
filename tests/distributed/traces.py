"""What a training run computed, whole: every step's loss, gradients and norm, and the parameters it ends with.

It is recorded through the very code that the worker runs (build_model, parallelize, Trainer), on a global batch of
random tokens that the layout cannot change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from parallelism.mesh import build_mesh
from parallelism.strategies import parallelize
from parallelism.training import Trainer, build_model, build_optimizer
from suite.case import Case
from suite.data import rank_slice
from suite.memory_probe import OPTIMIZER

STEPS = 3
DEVICE = torch.device("cpu")
WRAPPERS = ("module.", "_checkpoint_wrapped_module.")

Parallelize = Callable[[nn.Module, DeviceMesh | None, Case], nn.Module]


@dataclass(frozen=True)
class Trace:
    """One rank's record; sharded tensors are gathered, so every rank of a run should hold the same one."""

    losses: tuple[float, ...]
    """of each step, averaged over the ranks; then once more after the last step, on its batch"""
    gradient_norms: tuple[float, ...]
    """of each step, as the trainer reports it"""
    gradients: tuple[dict[str, Tensor], ...]
    """of each step, by parameter, before clipping"""
    start: dict[str, Tensor]
    """parameters as they were built and spread"""
    parameters: dict[str, Tensor]
    """parameters after the last step"""


def plain_name(name: str) -> str:
    """A parameter's name in the model, without the wrappers that strategies put around modules."""
    name = name.removeprefix("module.")
    return name.replace("_checkpoint_wrapped_module.", "")


def whole(tensor: Tensor) -> Tensor:
    """A copy of the full tensor. Collective for a sharded one."""
    return tensor.full_tensor().clone() if isinstance(tensor, DTensor) else tensor.detach().clone()


def global_batch(case: Case, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Random ids and their labels, [global_batch, seq_len] each; only the step and the sizes matter."""
    shape = (case.global_batch, case.workload.seq_len + 1)
    rows = np.random.default_rng(step).integers(case.model.vocab, size=shape)
    return rows[:, :-1], rows[:, 1:]


def rank_batch(case: Case, rank: int, step: int) -> tuple[Tensor, Tensor]:
    """One rank's part of a global batch, [micro_batches, micro_batch, seq_len] each, as the worker slices it."""
    ids, labels = (
        torch.from_numpy(rank_slice(array, rank, case.layout.data_ranks, case.workload.micro_batches).copy())
        for array in global_batch(case, step)
    )
    return ids, labels


def record(
    case: Case,
    rank: int,
    spread: Parallelize = parallelize,
    trainer_type: type[Trainer] = Trainer,
    steps: int = STEPS,
) -> Trace:
    """Train the case for a few steps on this rank and keep everything it computed."""
    model = spread(build_model(case, DEVICE), build_mesh(case.layout, DEVICE.type), case)
    start = {plain_name(name): whole(item) for name, item in model.named_parameters()}
    gradients: list[dict[str, Tensor]] = []

    def watch(phase: str) -> None:
        if phase == OPTIMIZER:  # told just before clipping
            gradients.append({plain_name(name): whole(item.grad) for name, item in model.named_parameters()})

    trainer = trainer_type(case, model, build_optimizer(model, case), DEVICE, watch)
    results = [trainer.step(step, *rank_batch(case, rank, step)) for step in range(steps)]
    parameters = {plain_name(name): whole(item) for name, item in model.named_parameters()}
    ids, labels = rank_batch(case, rank, steps - 1)
    losses = torch.stack([*(result.loss for result in results), trainer.evaluate(zip(ids, labels, strict=True))])
    if case.layout.world_size > 1:
        dist.all_reduce(losses)
        losses /= case.layout.world_size
    norms = tuple(float(result.gradient_norm) for result in results)
    return Trace(tuple(losses.tolist()), norms, tuple(gradients), start, parameters)
