"""What a step does around its operators: the trainer's own frame, a module's call, one more tensor in the update."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from parallelism.batches import Batch
from parallelism.clipping import clip_gradients
from parallelism.optimizers import build_optimizer
from parallelism.training import Trainer
from suite.case import case_from
from suite.hardware.operator_times import Format, Frame, Timed
from suite.optimizers import BETAS, MOMENTUM

#: tensors whose update is timed beside that of a single one
TENSORS = 9
#: micro-batches of a frame that is timed beside one of a single one
MICRO_BATCHES = 9

Work = Callable[[], None]


# --- one tensor more in what a step ends with ------------------------------------------------------------------


def finish_work(operator: Timed, elements: int, tensors: int, format: Format) -> Work:
    """Clip, update or let go of so many gradients of so many elements."""
    kind = torch.bfloat16 if format is Format.BF16 else torch.float32
    parameters = [nn.Parameter(torch.randn(elements).to(kind)) for _ in range(tensors)]
    gradients = [torch.randn_like(each) for each in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if operator is Timed.CLIP:
        return lambda: _clip(parameters)
    if operator is Timed.ACCUMULATE:
        return lambda: _accumulate(parameters, gradients)
    optimizer = _OPTIMIZERS[operator](parameters)
    return lambda: _step(optimizer)


def _clip(parameters: list[nn.Parameter]) -> None:
    clip_gradients(parameters, 1.0)


def _accumulate(parameters: list[nn.Parameter], gradients: list[Tensor]) -> None:
    """As autograd adds a gradient to the one that is there: in place."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        parameter.grad.add_(gradient)


def _step(optimizer: Optimizer) -> None:
    optimizer.step()


def _adamw(kernel: str) -> Callable[[list[nn.Parameter]], Optimizer]:
    flags = {"fused": kernel == "fused", "foreach": kernel == "foreach"}
    return lambda parameters: AdamW(parameters, lr=1e-9, betas=BETAS, **flags)


_OPTIMIZERS: dict[Timed, Callable[[list[nn.Parameter]], Optimizer]] = {
    Timed.ADAMW: _adamw("fused"),
    Timed.ADAMW_FOREACH: _adamw("foreach"),
    Timed.ADAMW_LOOP: _adamw("loop"),
    Timed.SGD: lambda parameters: SGD(parameters, lr=1e-9, momentum=MOMENTUM, fused=True),
}
FINISH = frozenset({Timed.CLIP, Timed.ACCUMULATE, *_OPTIMIZERS})


# --- what surrounds operators ----------------------------------------------------------------------------------


class _Nothing(nn.Module):
    """A model without operators: its loss is its only parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, ids: Tensor, labels: Tensor, keys: Tensor | None) -> Tensor:
        """The parameter as it is."""
        return self.weight.view(())


class _Same(nn.Module):
    """Returns what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        """x."""
        return x


def frame_works() -> dict[str, Work]:
    """What is timed for the frames: by name, a call each."""
    few, many = (_empty_step(count) for count in (1, MICRO_BATCHES))
    same, x = _Same(), torch.zeros(8, requires_grad=True)

    def calls() -> None:
        for _ in range(100):
            same(x)

    def starts() -> None:
        for _ in range(20):
            torch.autograd.grad(x.view(2, 4), x, x.view(2, 4))

    def views() -> None:
        for _ in range(20):
            y = x
            for _ in range(5):
                y = y.view(8)
            torch.autograd.grad(y.view(2, 4), x, x.view(2, 4))

    return {"one": few, "many": many, "calls": calls, "starts": starts, "views": views}


def frames_from(readings: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Overheads from the works' readings: `suite.hardware.operator_times.Frame` says what each is."""
    seconds = {name: statistics.median(values) for name, values in readings.items()}
    micro_batch = (seconds["many"] - seconds["one"]) / (MICRO_BATCHES - 1)
    view = (seconds["views"] - seconds["starts"]) / 20 / 5  # a view and its node
    return {
        Frame.STEP: max(0.0, seconds["one"] - micro_batch),
        Frame.MICRO_BATCH: max(0.0, micro_batch),
        Frame.MODULE: seconds["calls"] / 100,
        Frame.BACKWARD: max(0.0, seconds["starts"] / 20 - 2 * view),
    }


def _empty_step(micro_batches: int) -> Work:
    """A training step of a model without operators: the learning rate, autocast, the engine's start, the mean of the
    losses, clipping and updating a scalar, letting its gradient go."""
    case = case_from({"model": "gpt-1m", "workload": {"precision": "fp32", "micro_batches": micro_batches}})
    model = _Nothing()
    trainer = Trainer(case, model, build_optimizer(model, case), torch.device("cpu"))
    ids = torch.zeros(micro_batches, 1, 1, dtype=torch.int64)
    batch = Batch(ids, ids)

    def step() -> None:
        trainer.step(0, batch)

    return step


def copy_works(sizes: Iterable[int]) -> dict[str, Work]:
    """Copies of so many bytes; a call reads and writes them."""
    return {str(size): _copy(size) for size in sizes}


def _copy(size: int) -> Work:
    source, target = torch.randn(size // 4), torch.empty(size // 4)

    def copy() -> None:
        target.copy_(source)

    return copy
