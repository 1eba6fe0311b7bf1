"""Probes of torch's pipelines: stages of trivial operators under a schedule on one rank, and split backward passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import ScheduleInterleaved1F1B
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight

from parallelism.overheads.shapes import FEW, FEW_BATCHES, LONG, MANY, MANY_BATCHES, SHORT, SIDE, STAGES
from parallelism.pipeline.parts import TrainedStage

Call = Callable[[], object]


class Part(nn.Module):
    """A stage: linears, then operators without parameters; a loss at the end."""

    def __init__(self, parameters: int, operators: int, is_last: bool = False) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(SIDE, SIDE)) for _ in range(parameters)])
        self.operators, self.is_last = operators, is_last

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The stream, or its mean."""
        for weight in self.weights:
            x = F.linear(x, weight)
        for _ in range(self.operators):
            x = x.sigmoid()
        return x.mean() if self.is_last else x


def calls() -> dict[str, Call]:
    """Steps of few and of many micro-batches, under torch's schedule and stage by stage; one stage's passes, whole,
    for inputs alone, and in halves."""
    own, _ = dist.new_subgroups(1)
    found: dict[str, Call] = {}
    for batches in (FEW_BATCHES, MANY_BATCHES):
        parts = [Part(FEW, SHORT, index == STAGES - 1) for index in range(STAGES)]
        found[f"schedule.{batches}"] = _scheduled(parts, batches, own)
        found[f"stages.{batches}"] = partial(_step, parts, torch.ones(batches, SIDE, SIDE))
    for parameters, operators in ((FEW, SHORT), (MANY, SHORT), (FEW, LONG)):
        passes = {"whole": _whole, "gradient": _gradient, "inputs": _inputs, "split": _split}
        for name, call in passes.items():
            found[f"{name}.{parameters}.{operators}"] = partial(call, Part(parameters, operators))
    return found


def _scheduled(parts: list[Part], batches: int, group: dist.ProcessGroup) -> Call:
    """A step of all stages on this rank, as parallelism/pipeline/trainer.py has its schedules do it."""
    stream = torch.empty(1, SIDE, SIDE, device="meta", requires_grad=True)
    first, loss = torch.empty(1, SIDE, SIDE, device="meta"), torch.empty((), device="meta", requires_grad=True)
    stages: list[Any] = [
        TrainedStage(
            part, index, STAGES, torch.device("cpu"),
            input_args=stream if index else first,
            output_args=loss if part.is_last else stream,
            group=group, context=nullcontext, before_backward=lambda: None,
        )
        for index, part in enumerate(parts)
    ]  # fmt: skip
    schedule = ScheduleInterleaved1F1B(stages, batches, loss_fn=lambda loss, labels: loss / batches, scale_grads=False)
    x = torch.ones(batches, SIDE, SIDE)

    def step() -> None:
        losses: list[Tensor] = []
        schedule.step(x, target=x, losses=losses, return_outputs=False, labels=x)
        _forget(parts)

    return step


def _step(parts: list[Part], x: Tensor) -> None:
    """The same passes, stage by stage."""
    for batch in x.split(1):
        passed, stream = [], batch
        for index, part in enumerate(parts):
            given = stream.detach().requires_grad_(index > 0)
            stream = part(given)
            passed.append((given, stream))
        (stream / len(x)).backward()
        for (given, _), (_, made) in zip(passed[:0:-1], passed[-2::-1], strict=True):
            made.backward(given.grad)
    _forget(parts)


def _forget(parts: list[Part]) -> None:
    for part in parts:
        for parameter in part.parameters():
            parameter.grad = None


def _forward(part: Part) -> tuple[Tensor, Tensor, Tensor]:
    """Input, output, the output's gradient."""
    x = torch.ones(1, SIDE, SIDE, requires_grad=True)
    return x, part(x), torch.ones(1, SIDE, SIDE)


def _whole(part: Part) -> None:
    _, y, gradient = _forward(part)
    y.backward(gradient)
    _forget([part])


def _gradient(part: Part) -> None:
    x, y, gradient = _forward(part)
    torch.autograd.grad(y, x, gradient, retain_graph=True)


def _inputs(part: Part) -> None:
    x, y, gradient = _forward(part)
    stage_backward_input([y], [gradient], [x], part.parameters())


def _split(part: Part) -> None:
    x, y, gradient = _forward(part)
    _, groups = stage_backward_input([y], [gradient], [x], part.parameters())
    stage_backward_weight(part.parameters(), groups)
    _forget([part])
