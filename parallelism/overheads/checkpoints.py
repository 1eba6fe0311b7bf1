"""Probes of activation checkpointing: regions of trivial operators, rerun whole or by torch's selective policy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper

from parallelism.checkpointing import selective_contexts
from parallelism.overheads.shapes import LONG, SHORT, SIDE, TALL
from suite.layout import Layout

Call = Callable[[], object]


class Region(nn.Module):
    """So many operators in a row, none of which keeps much."""

    def __init__(self, operators: int) -> None:
        super().__init__()
        self.operators = operators

    def forward(self, x: Tensor) -> Tensor:
        """Square roots of a positive tensor."""
        for _ in range(self.operators):
            x = x.sqrt()
        return x


def calls() -> dict[str, Call]:
    """A tall stack of regions and one, short and long: bare, its forward alone, rerun whole, rerun selectively."""
    found: dict[str, Call] = {}
    for operators, regions, kind in product((SHORT, LONG), (1, TALL), ("bare", "whole", "selective")):
        settings = {"context_fn": selective_contexts(Layout())} if kind == "selective" else {}
        parts: list[nn.Module] = [Region(operators) for _ in range(regions)]
        if kind != "bare":
            parts = [
                checkpoint_wrapper(part, CheckpointImpl.NO_REENTRANT, preserve_rng_state=False, **settings)
                for part in parts
            ]
        stack = nn.Sequential(*parts)
        x = torch.ones(SIDE, SIDE, requires_grad=True)
        found[f"{kind}.{operators}.{regions}"] = partial(_step, stack, x)
        if kind == "bare":
            found[f"forward.{operators}.{regions}"] = partial(stack, x)
    return found


def _step(stack: nn.Module, x: Tensor) -> None:
    stack(x).sum().backward()
