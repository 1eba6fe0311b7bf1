"""Runs of DeepSpeed's engine on forked ranks, recorded as the equality tests record every layout."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module

from torch import Tensor

from parallelism.building import make_trainer
from parallelism.mesh import build_mesh
from parallelism.zero.engine_state import full_gradients, full_parameters
from parallelism.zero.trainer import DeepSpeedTrainer, import_deepspeed
from suite.case import Case
from suite.memory_probe import OPTIMIZER
from tests.distributed.traces import CPU, STEPS, Piece, RankTrace, one_by_one, rank_batch

Planted = Callable[[DeepSpeedTrainer], AbstractContextManager[object]]

# here, so that forked ranks find it done: what the first engine imports takes seconds
import_deepspeed("cpu")
import_module("deepspeed.runtime.zero.muon.muon_optimizer")
import_module("deepspeed.runtime.zero.stage3")


def engine_of(case: Case, mark: Callable[[str], None] = lambda name: None) -> DeepSpeedTrainer:
    """The case's trainer on this rank, which has to be DeepSpeed's."""
    if not gc.get_freeze_count():
        gc.freeze()  # the engine collects garbage at every turn, and a forked rank has all of pytest's heap
    trainer = make_trainer(case, build_mesh(case.layout, CPU.type), CPU, mark)
    assert isinstance(trainer, DeepSpeedTrainer)
    return trainer


def record_zero(case: Case, rank: int, planted: Planted = lambda trainer: nullcontext()) -> RankTrace:
    """Train for a few steps on this rank and keep what was computed. Gradients and parameters are whole on every rank:
    the engine puts them together."""
    gradients: list[dict[str, Piece]] = []
    trainer: DeepSpeedTrainer

    def watch(phase: str) -> None:
        if phase == OPTIMIZER:  # told just before the gradients are clipped
            gradients.append(_whole(full_gradients(trainer)))

    trainer = engine_of(case, watch)
    start = _whole(full_parameters(trainer))
    with planted(trainer):
        results = [trainer.step(step, rank_batch(case, rank, step)) for step in range(STEPS)]
    last = trainer.evaluate(one_by_one(rank_batch(case, rank, STEPS - 1)))
    losses = tuple(loss.item() for loss in (*(result.loss for result in results), last))
    norms = tuple(result.gradient_norm.item() for result in results)
    end = _whole(full_parameters(trainer))
    trainer.close()
    return RankTrace(losses, norms, tuple(gradients), start, end)


def _whole(tensors: dict[str, Tensor]) -> dict[str, Piece]:
    return {name: Piece(tensor, tuple(tensor.shape), (0,) * tensor.dim()) for name, tensor in tensors.items()}
