"""A recorded routing: the rows that a rank's experts received, so that formulas speak of the same routing as a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ParamSpec

import torch
from torch import Tensor, nn

from parallelism.training import Trainer
from suite.case import Case
from suite.models.experts_module import Exchange, MixtureMLP
from suite.received import Rows, received_rows

P = ParamSpec("P")


@contextmanager
def recorded_rows(model: nn.Module, layers: int) -> Iterator[dict[int, list[int]]]:
    """What the experts here receive in each forward pass of the block, by the block's number in the model, which has so
    many layers; blocks that predict further tokens come after them. Reruns in a backward pass are not counted again."""
    found: dict[int, list[int]] = {}
    heard: list[tuple[MixtureMLP, Exchange]] = []
    for name, module in model.named_modules():
        if isinstance(module, MixtureMLP) and module.exchange is not None:
            parts = name.split(".")
            block = next(int(part) for part in reversed(parts) if part.isdigit()) + layers * ("mtp" in parts)
            heard.append((module, module.exchange))
            module.exchange = _Heard(module.exchange, found.setdefault(block, []))
    try:
        yield found
    finally:
        for module, exchange in heard:
            module.exchange = exchange


class Recording:
    """Makers of trainers, each listened to; of the last one made, `rows` are those of its last step."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._heard: dict[int, list[int]] = {}
        self._listening = ExitStack()

    def of(self, make: Callable[P, Trainer]) -> Callable[P, Trainer]:
        """The same maker, what it makes listened to."""

        def made(*given: P.args, **named: P.kwargs) -> Trainer:
            trainer = make(*given, **named)
            self._heard = self._listening.enter_context(recorded_rows(trainer.model, self._case.model.layers))
            return trainer

        return made

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    @property
    def rows(self) -> tuple[Rows, ...]:
        """What the experts here received in each micro-batch of the last step; nothing where no expert listens."""
        return received_rows(self._case, self._heard) if self._heard else ()


@dataclass(frozen=True)
class _Heard:
    """An exchange that writes down how many rows came."""

    exchange: Exchange
    rows: list[int]

    def __call__(self, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        arrived, here, back = self.exchange(rows, counts)
        if torch._C._current_graph_task_id() == -1:  # not in a backward pass
            self.rows.append(len(arrived))
        return arrived, here, back
