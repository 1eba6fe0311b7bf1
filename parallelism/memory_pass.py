"""The memory pass of a rank: a few steps of a fresh model with every allocation accounted for, apart from timing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from parallelism.batches import Batch
from parallelism.training import Trainer
from suite.allocations import mark, record_allocations, settled_collectives
from suite.cuda_probe import CudaMoments, cuda_stats, storage_bytes
from suite.memory_probe import (
    FORWARD,
    IDLE,
    LEVELS,
    LOSS,
    OPTIMIZER,
    PEAKS,
    SETUP,
    Sightings,
    cpu_samples,
    local_tensor,
)
from suite.record import Component, Sample

#: optimizer state exists from the second step on, DDP rebuilds its buckets in the second: the third is steady
MEMORY_STEPS = 3

#: what models call their output projection
HEADS = ("head", "lm_head")

Batches = Callable[[int], Batch]


class TrainerMaker(Protocol):
    """Makes a fresh trainer that tells `mark` each phase's start."""

    def __call__(self, *, mark: Callable[[str], None]) -> Trainer:
        """A model, parallelized, with its optimizer."""
        ...


class PhaseMarks:
    """Passes on each phase's start. The loss begins at the head's first call of a forward pass, not at its reruns."""

    def __init__(self, listen: Callable[[str], None]) -> None:
        self._listen = listen
        self._in_forward = False

    def __call__(self, name: str) -> None:
        """A phase begins."""
        self._in_forward = name == FORWARD
        self._listen(name)

    def watch_head(self, model: nn.Module) -> None:
        """Hear when the model's output projection is called; a pipeline stage may have none."""
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in HEADS:
                module.register_forward_pre_hook(self._head_called, prepend=True)

    def _head_called(self, *_: object) -> None:
        if self._in_forward:
            self(LOSS)


def cpu_memory(make: TrainerMaker, batch: Batches, rank: int, heartbeat: Callable[[str], None]) -> list[Sample]:
    """Samples from the CPU allocator's record of the last of MEMORY_STEPS steps."""
    sightings = Sightings()
    with record_allocations() as trace, settled_collectives():
        trainer = sighted_steps(make, batch, sightings, mark, heartbeat)
    trainer.close()
    return cpu_samples(trace, sightings, rank)


def sighted_steps(
    make: TrainerMaker,
    batch: Batches,
    sightings: Sightings,
    mark: Callable[[str], None],
    heartbeat: Callable[[str], None],
) -> Trainer:
    """Run MEMORY_STEPS steps of a fresh trainer with every phase marked, and see where its state lies."""
    trainers: list[Trainer] = []

    def listen(name: str) -> None:
        mark(name)
        if name == OPTIMIZER:  # the gradients are whole now, and soon gone
            sightings.states(OPTIMIZER, trainers[0].state())

    mark(SETUP)
    trainer, inputs = _steps(make, batch, PhaseMarks(listen), trainers, heartbeat)
    sightings.see(IDLE, Component.INPUTS, inputs)
    sightings.states(IDLE, trainer.state())
    return trainer


def cuda_memory(make: TrainerMaker, batch: Batches, rank: int, heartbeat: Callable[[str], None]) -> list[Sample]:
    """Samples from the CUDA caching allocator's statistics over the last of MEMORY_STEPS steps."""
    moments = CudaMoments(cuda_stats, torch.cuda.reset_peak_memory_stats)
    trainers: list[Trainer] = []

    def listen(name: str) -> None:
        groups = trainers[0].state() if trainers else {}
        moments.mark(name, {component: _bytes(tensors) for component, tensors in groups.items()})

    trainer, _ = _steps(make, batch, PhaseMarks(listen), trainers, heartbeat)
    trainer.close()
    return moments.samples(rank, PEAKS, LEVELS, FORWARD, IDLE)


def _steps(
    make: TrainerMaker,
    batch: Batches,
    marks: PhaseMarks,
    trainers: list[Trainer],
    heartbeat: Callable[[str], None],
) -> tuple[Trainer, tuple[Tensor, ...]]:
    """Run the steps; the inputs live in the framework's memory from first to last, as a data loader's would."""
    trainer = make(mark=marks)
    trainers.append(trainer)
    marks.watch_head(trainer.model)
    first = batch(0)
    held = first.map(torch.empty_like)
    for step in range(MEMORY_STEPS):
        fresh = batch(step)
        for mine, given in zip(held.tensors, fresh.tensors, strict=True):
            mine.copy_(given)
        trainer.step(step, replace(held, keys=fresh.keys, weights=fresh.weights))
        heartbeat(f"memory step {step + 1} of {MEMORY_STEPS}")
    return trainer, held.tensors


def _bytes(tensors: list[Tensor]) -> int:
    storages = (local_tensor(tensor).untyped_storage() for tensor in tensors)
    return storage_bytes((storage.data_ptr(), storage.nbytes()) for storage in storages)
