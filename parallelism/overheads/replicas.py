"""Probes of DDP: stacks of trivial linears, wrapped and not, gradients left alone and reduced."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from parallelism.overheads.shapes import LOTS, SIDE, SOME, UNIT_BYTES

Call = Callable[[], object]


def calls() -> dict[str, Call]:
    """A micro-batch of some linears and of lots: bare, left unreduced, reduced in one bucket; and that all-reduce."""
    found: dict[str, Call] = {}
    for count in (SOME, LOTS):
        for kind in ("bare", "left", "reduced"):
            stack = nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(count)))
            wrapped = stack if kind == "bare" else DistributedDataParallel(stack)
            found[f"{kind}.{count}"] = _step(wrapped, is_left=kind == "left")
        whole = torch.ones(count * UNIT_BYTES // 4)
        found[f"all-reduce.{count}"] = partial(dist.all_reduce, whole)
    return found


def _step(model: nn.Module, is_left: bool) -> Call:
    x = torch.ones(1, SIDE)

    def step() -> None:
        model(x).sum().backward()

    def left() -> None:
        assert isinstance(model, DistributedDataParallel)
        with model.no_sync():
            step()

    return left if is_left else step
