"""One training step on one rank, and the recipe around it: what every layout runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from parallelism.batches import Batch
from parallelism.clipping import clip_gradients
from parallelism.data.accumulation import reduction_left_out
from parallelism.data.expert_gradients import average_exchanged
from parallelism.data.leftovers import average_replicas, sum_sequence_parts
from parallelism.dtypes import torch_dtype
from parallelism.expert_loads import move_biases, take_loads
from suite import memory_probe as phases
from suite.case import Case
from suite.formats import formats_of
from suite.layout import Reduction
from suite.models.modules import new_module
from suite.record import Component
from suite.spec import MIN_LEARNING_RATE, Precision, Recipe


def learning_rate(recipe: Recipe, step: int) -> float:
    """Learning rate of step 0, 1, ...: linear warm-up, then a cosine down to a tenth of the peak."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return recipe.learning_rate * (MIN_LEARNING_RATE + (1 - MIN_LEARNING_RATE) * cosine)


def build_model(case: Case, device: torch.device) -> nn.Module:
    """The case's model with the weights that its seed gives, the same on every rank and in every layout.

    Weights are drawn in fp32 and rounded where the case keeps them in bf16; rotary tables stay in fp32, as in
    transformers' models. DeepSpeed rounds by itself.
    """
    torch.manual_seed(case.recipe.seed)
    with device:
        model = new_module(case.model, case.workload)
    if case.workload.precision is Precision.BF16:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch_dtype(formats_of(case).parameters))
    return model


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Out of training: what keeps running statistics reads them and leaves them as they are."""
    model.eval()
    try:
        yield
    finally:
        model.train()


@dataclass(frozen=True)
class StepResult:
    """What a step says of itself, still on the device: reading it would make the host wait."""

    loss: Tensor  # mean over this rank's micro-batches, nats a token; 0 on a pipeline rank without the loss
    gradient_norm: Tensor
    routed: Tensor | None = None  # tokens of this rank that went to each expert, [mixtures here, experts]


@dataclass(frozen=True)
class Trainer:
    """A parallelized model with its optimizer. `mark` is told each phase's start; by default nobody listens."""

    case: Case
    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    mark: Callable[[str], None] = lambda name: None
    mesh: DeviceMesh | None = None

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss where gradients are made in fp16, whose smallest would vanish; else it changes nothing.

        A step whose gradients overflow on any rank is left out on all, and the scale halved: DDP's gradients are the
        same on every rank, and of FSDP2's torch reduces what each rank found (torch.amp.GradScaler, DTensor's rule).
        """
        return torch.amp.GradScaler(self.device.type, enabled=self.case.workload.precision is Precision.FP16_MIXED)

    def step(self, index: int, batch: Batch) -> StepResult:
        """One optimizer step on this rank's part of the global batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.case.recipe, index)
        loss = self.forward_backward(batch)
        self.finish_gradients()
        self.mark(phases.OPTIMIZER)
        norm = self.clip_and_update()
        routed = take_loads(self.model)
        move_biases(self.model, routed, self.mesh, self.case)
        self.mark(phases.IDLE)
        return StepResult(loss, norm, routed)

    def forward_backward(self, batch: Batch) -> Tensor:
        """Gradients of the batch's mean loss, reduced over the data-parallel ranks; the mean loss of this rank."""
        losses = []
        for index in range(len(batch)):
            losses.append(self._micro_step(batch, index))
        return torch.stack(losses).mean()

    def finish_gradients(self) -> None:
        """What is left to reduce once the last micro-batch's backward pass is over."""
        average_replicas(self.model, self.mesh, self.case.layout)
        average_exchanged(self.model, self.case.layout)
        sum_sequence_parts(self.model, self.mesh, self.case.layout)

    def clip_and_update(self) -> Tensor:
        """Clip the gradients, once they are unscaled; update the parameters, drop the gradients; the norm before."""
        self.scaler.unscale_(self.optimizer)
        norm = self.clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def clip(self) -> Tensor:
        """Scale all gradients so that their norm over all ranks is at most the recipe's; the norm before that."""
        return clip_gradients(self.model.parameters(), self.case.recipe.clip_norm)

    def evaluate(self, batches: Iterable[Batch]) -> Tensor:
        """Mean loss of this rank's part of held-out batches of one micro-batch each."""
        with torch.no_grad(), self.autocast(), _evaluating(self.model):
            return torch.stack([self._loss(batch, 0) for batch in batches]).mean()

    def state(self) -> dict[Component, list[Tensor]]:
        """The tensors that this rank holds as they are now, by component; several may share a storage."""
        return phases.state_tensors(self.model, self.optimizer)

    def close(self) -> None:
        """Let go of what would outlive the trainer: nothing here; an engine may have more."""

    def _loss(self, batch: Batch, index: int) -> Tensor:
        """The model's loss of one micro-batch."""
        given, named = batch.given(index)
        loss: Tensor = self.model(*given, **named)
        return loss

    def _micro_step(self, batch: Batch, index: int) -> Tensor:
        is_last = index == len(batch) - 1
        self.mark(phases.FORWARD)
        with self._synchronize_only_if(is_last):
            with self.autocast():
                loss = self._loss(batch, index)
            self.mark(phases.BACKWARD)
            self.scaler.scale(loss / self.case.workload.micro_batches).backward()
        if not is_last and self.case.layout.reduction is Reduction.MICRO_BATCH:
            average_replicas(self.model, self.mesh, self.case.layout)
        return loss.detach()

    def autocast(self) -> Any:
        """Mixed precision is autocast, except under FSDP, whose own policy casts the parameters."""
        numerics = formats_of(self.case).numerics
        return torch.autocast(self.device.type, torch_dtype(numerics.compute), enabled=numerics.autocast)

    def _synchronize_only_if(self, is_last: bool) -> Any:
        """Reduce gradients after the last micro-batch alone, unless the layout asks for each."""
        return nullcontext() if is_last else reduction_left_out(self.model, self.case.layout)
