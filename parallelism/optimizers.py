"""The optimizers that update a model: torch's own, our 8-bit Adam, and pairs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adafactor, AdamW, Muon, Optimizer

from parallelism.adam_8bit import Adam8bit
from suite.case import Case
from suite.optimizers import BETAS, MOMENTUM, kernel_of, rule_of
from suite.spec import OptimizerKernel, OptimizerKind

#: Muon's update scaled to the size of AdamW's, so that one learning rate serves both (arXiv:2502.16982, section 2.2)
MUON_SCALE = "match_rms_adamw"

#: what the model's blocks are kept in, by name
BLOCKS = {"blocks", "mtp"}


class Together(Optimizer):
    """Several optimizers, each with parameters of its own, as one: their groups and their state are its own too."""

    def __init__(self, parts: Iterable[Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([dict(group) for part in self.parts for group in part.param_groups], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """A step of each."""
        assert closure is None
        for part in self.parts:
            part.step()


def build_optimizer(model: nn.Module, case: Case) -> Optimizer:
    """The case's optimizer over the model's parameters; only matrices decay.

    AdamW has betas (0.9, 0.95), SGD a momentum of 0.9. Muon updates the blocks' matrices, 8-bit Adam the tensors of
    4096 elements or more, and AdamW what they leave.
    """
    rules: dict[OptimizerKind, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rule = rule_of(case.workload.optimizer, tuple(parameter.shape), bool(BLOCKS & {*name.split(".")}))
        rules.setdefault(rule, []).append(parameter)
    parts = [_MAKERS[rule](parameter_groups(mine, case.recipe.weight_decay), case) for rule, mine in rules.items()]
    return parts[0] if len(parts) == 1 else Together(parts)


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameters in groups: matrices, which decay, and vectors; and apart by mesh, since no kernel takes tensors of
    two of them, or DTensors with plain ones."""
    groups: dict[tuple[bool, Any], list[nn.Parameter]] = {}
    for item in parameters:
        mesh = item.device_mesh if isinstance(item, DTensor) else None
        groups.setdefault((item.dim() >= 2, mesh), []).append(item)
    return [
        {"params": items, "weight_decay": weight_decay if is_matrix else 0.0}
        for (is_matrix, _), items in groups.items()
    ]


Groups = list[dict[str, Any]]


def _adamw(groups: Groups, case: Case) -> Optimizer:
    return AdamW(groups, lr=case.recipe.learning_rate, betas=BETAS, **_flags(case))


def _sgd(groups: Groups, case: Case) -> Optimizer:
    return SGD(groups, lr=case.recipe.learning_rate, momentum=MOMENTUM, **_flags(case))


def _adafactor(groups: Groups, case: Case) -> Optimizer:
    return Adafactor(groups, lr=case.recipe.learning_rate, foreach=kernel_of(case) is OptimizerKernel.FOREACH)


def _muon(groups: Groups, case: Case) -> Optimizer:
    return Muon(groups, lr=case.recipe.learning_rate, adjust_lr_fn=MUON_SCALE)


def _adam_8bit(groups: Groups, case: Case) -> Optimizer:
    return Adam8bit(groups, lr=case.recipe.learning_rate, betas=BETAS)


def _flags(case: Case) -> dict[str, bool]:
    kernel = kernel_of(case)
    return {"fused": kernel is OptimizerKernel.FUSED, "foreach": kernel is OptimizerKernel.FOREACH}


_MAKERS: dict[OptimizerKind, Callable[[Groups, Case], Optimizer]] = {
    OptimizerKind.ADAMW: _adamw,
    OptimizerKind.SGD: _sgd,
    OptimizerKind.ADAFACTOR: _adafactor,
    OptimizerKind.MUON: _muon,
    OptimizerKind.ADAM_8BIT: _adam_8bit,
}
