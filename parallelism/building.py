"""From a Case to a Trainer: build the model, spread it, choose who runs the step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from parallelism.mesh import replica_mesh
from parallelism.optimizers import build_optimizer
from parallelism.strategies import parallelize
from parallelism.training import Trainer, build_model
from parallelism.zero.redundancy import is_zero_redundancy, shard_optimizer
from suite.case import Case
from suite.formats import check_trainable


def make_trainer(
    case: Case, mesh: DeviceMesh | None, device: torch.device, mark: Callable[[str], None] = lambda name: None
) -> Trainer:
    """A fresh model, parallelized over the mesh, with its optimizer, ready to take steps."""
    check_trainable(case)
    model = parallelize(build_model(case, device), mesh, case)
    if case.layout.is_deepspeed:
        from parallelism.zero.trainer import make_deepspeed_trainer

        return make_deepspeed_trainer(model, case, device, mark, mesh)
    optimizer = _optimizer(model, mesh, case)
    if case.layout.pp > 1:
        from parallelism.pipeline.trainer import PipelineTrainer

        return PipelineTrainer(case, model, optimizer, device, mark, mesh)
    return Trainer(case, model, optimizer, device, mark, mesh)


def _optimizer(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> torch.optim.Optimizer:
    """The case's optimizer, its state divided over the replicas where the layout says so."""
    if mesh is not None and is_zero_redundancy(case.layout):
        return shard_optimizer(model, replica_mesh(mesh, case.layout).get_group(), case)
    return build_optimizer(model, case)
