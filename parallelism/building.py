"""From a Case to a Trainer: build the model, spread it, choose who runs the step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.distributed.device_mesh import DeviceMesh

from parallelism.strategies import parallelize
from parallelism.training import Trainer, build_model, build_optimizer
from suite.case import Case


def make_trainer(
    case: Case, mesh: DeviceMesh | None, device: torch.device, mark: Callable[[str], None] = lambda name: None
) -> Trainer:
    """A fresh model, parallelized over the mesh, with its optimizer, ready to take steps."""
    model = parallelize(build_model(case, device), mesh, case)
    if case.layout.is_deepspeed:
        from parallelism.deepspeed_trainer import make_deepspeed_trainer

        return make_deepspeed_trainer(model, case, device, mark)
    return Trainer(case, model, build_optimizer(model, case), device, mark)
