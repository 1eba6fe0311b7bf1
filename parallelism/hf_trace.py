"""A transformers model, built from its config.json on fake tensors, in the trainer that trains our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from parallelism.hf_reference import KERNELS, import_transformers
from parallelism.optimizers import build_optimizer
from parallelism.strategies import strategies_of
from parallelism.training import Trainer
from suite.case import Case
from suite.parse import require

#: strategies that take any module
TAKEN = ("ddp", "fsdp")
NOTE = "traced: transformers' model; predicted: ours of the same shape, so differences are between the two models"


class HfModel(nn.Module):
    """transformers' model with the signature of our decoder: ids and labels [b, s] -> mean loss. Labels are shifted
    there once more, so that one token fewer counts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """The decoder layers, which transformers says must not be split."""
        model: Any = self.model
        kinds = set(model._no_split_modules)
        layers = [module for module in model.modules() if type(module).__name__ in kinds]
        return {str(index): layer for index, layer in enumerate(layers)}

    def forward(self, ids: Tensor, labels: Tensor, keys: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats a token."""
        return self.model(input_ids=ids, labels=labels, use_cache=False).loss


def hf_builder(
    case: Case, path: str
) -> Callable[[Case, DeviceMesh | None, torch.device, Callable[[str], None]], Trainer]:
    """Makes trainers of the model that a config.json describes. SpecError where transformers is not installed, and for
    layouts beyond one device, DDP and FSDP2."""
    transformers = import_transformers()
    names = [strategy.name for strategy in strategies_of(case.layout)]
    require(
        set(names) <= set(TAKEN),
        f"layout: {', '.join(names)} with --as transformers; its modules take dp and fsdp alone",
    )
    config = transformers.AutoConfig.from_pretrained(path)

    def build(case: Case, mesh: DeviceMesh | None, device: torch.device, mark: Callable[[str], None]) -> Trainer:
        with device:
            made = transformers.AutoModelForCausalLM.from_config(
                config, attn_implementation=KERNELS[case.workload.attention], dtype=torch.float32
            )
        model: nn.Module = HfModel(made.train())
        for strategy in strategies_of(case.layout):
            model = strategy.apply(model, mesh, case)
        return Trainer(case, model, build_optimizer(model, case), device, mark, mesh)

    return build
