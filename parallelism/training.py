"""One training step on one rank, and the recipe around it: what every layout runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from suite import memory_probe as phases
from suite.case import Case
from suite.models.decoder_module import Decoder
from suite.spec import OptimizerKind, Precision, Recipe

BETAS = (0.9, 0.95)
MIN_LEARNING_RATE = 0.1  # of the peak, at the end of the cosine
MOMENTUM = 0.9


def learning_rate(recipe: Recipe, step: int) -> float:
    """Learning rate of step 0, 1, ...: linear warm-up, then a cosine down to a tenth of the peak."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return recipe.learning_rate * (MIN_LEARNING_RATE + (1 - MIN_LEARNING_RATE) * cosine)


def build_model(case: Case, device: torch.device) -> Decoder:
    """The case's model with the weights that its seed gives, the same on every rank and in every layout."""
    torch.manual_seed(case.recipe.seed)
    with device:
        model = Decoder(case.model, case.workload.attention, case.workload.loss)
        model.reset_parameters()
    return model


def build_optimizer(model: nn.Module, case: Case) -> torch.optim.Optimizer:
    """AdamW (0.9, 0.95) or SGD with momentum, fused, so that a step needs no temporaries; only matrices decay."""
    recipe = case.recipe
    parameters = list(model.parameters())
    groups = [
        {"params": [item for item in parameters if item.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [item for item in parameters if item.dim() < 2], "weight_decay": 0.0},
    ]
    if case.workload.optimizer is OptimizerKind.SGD:
        has_rule = case.layout.fsdp == 1  # DTensor has none for the fused SGD kernel (torch 2.13): one temporary then
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=MOMENTUM, fused=has_rule, foreach=False)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS, fused=True)


@dataclass(frozen=True)
class StepResult:
    """What a step says of itself, still on the device: reading it would make the host wait."""

    loss: Tensor  # mean over this rank's micro-batches, nats a token
    gradient_norm: Tensor


@dataclass(frozen=True)
class Trainer:
    """A parallelized model with its optimizer. `mark` is told each phase's start; by default nobody listens."""

    case: Case
    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    mark: Callable[[str], None] = lambda name: None

    def step(self, index: int, ids: Tensor, labels: Tensor) -> StepResult:
        """One optimizer step on ids and labels, [micro_batches, micro_batch, seq_len] of this rank."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.case.recipe, index)
        losses = [
            self._micro_step(part, goal, is_last=place == len(ids) - 1)
            for place, (part, goal) in enumerate(zip(ids, labels, strict=True))
        ]
        self.mark(phases.OPTIMIZER)
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.mark(phases.IDLE)
        return StepResult(torch.stack(losses).mean(), norm)

    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Mean loss of this rank's part of held-out batches, each [rows, seq_len]."""
        with torch.no_grad(), self._autocast():
            return torch.stack([self.model(ids, labels) for ids, labels in batches]).mean()

    def _micro_step(self, ids: Tensor, labels: Tensor, is_last: bool) -> Tensor:
        self.mark(phases.FORWARD)
        with self._synchronize_only_if(is_last):
            with self._autocast():
                loss = self.model(ids, labels)
            self.mark(phases.BACKWARD)
            (loss / self.case.workload.micro_batches).backward()
        return loss.detach()

    def _clip(self) -> Tensor:
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.case.recipe.clip_norm)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _autocast(self) -> Any:
        """bf16-mixed is autocast, except under FSDP, whose own policy casts the parameters."""
        mixed = self.case.workload.precision is Precision.BF16_MIXED and self.case.layout.fsdp == 1
        return torch.autocast(self.device.type, torch.bfloat16, enabled=mixed)

    def _synchronize_only_if(self, is_last: bool) -> Any:
        """DDP reduces once a step. FSDP reduces every micro-batch: the alternative keeps whole gradients."""
        return self.model.no_sync() if self.case.layout.dp > 1 and not is_last else nullcontext()  # type: ignore[operator]
