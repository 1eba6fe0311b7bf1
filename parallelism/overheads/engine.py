"""Probes of DeepSpeed's engine: steps of stacks of equal linears, under it and bare."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parallelism.clipping import clip_gradients
from parallelism.optimizers import build_optimizer
from parallelism.overheads.shapes import ENGINE_FEW, ENGINE_MANY, ENGINE_SIDE
from suite.case import Case, case_from
from suite.cases import DIVISIBLE

Call = Callable[[], object]


class Stack(nn.Module):
    """Linears in a row, whose loss is a mean; rerun in backward as one region, or not."""

    def __init__(self, count: int, is_rerun: bool) -> None:
        super().__init__()
        self.linears = nn.Sequential(*(nn.Linear(ENGINE_SIDE, ENGINE_SIDE, bias=False) for _ in range(count)))
        self.is_rerun = is_rerun

    def forward(self, x: Tensor) -> Tensor:
        """The loss."""
        return (checkpoint(self.linears, x, use_reentrant=False) if self.is_rerun else self.linears(x)).mean()


def calls(stage: int) -> dict[str, Call]:
    """Steps of one and of two micro-batches of few and of many linears: bare, and under the engine; in stage 3 rerun
    too. And the collectives of a bucket of each size, and of a scalar."""
    found: dict[str, Call] = {}
    kinds = ("bare", "engine", "rerun") if stage == 3 else ("bare", "engine")
    for count, batches, kind in product((ENGINE_FEW, ENGINE_MANY), (1, 2), kinds):
        found[f"{kind}.{count}.{batches}"] = _step(_case(stage, batches), Stack(count, kind == "rerun"), kind)
    ranks = dist.get_world_size()
    for count in (ENGINE_FEW, ENGINE_MANY):
        whole = torch.ones(count * ENGINE_SIDE**2)
        part = torch.ones(len(whole) // ranks)
        found[f"all-reduce.{count}"] = partial(dist.all_reduce, whole)
        found[f"gather.{count}"] = partial(dist.all_gather_into_tensor, whole, part)
        found[f"scatter.{count}"] = partial(dist.reduce_scatter_tensor, part, whole)
    found["scalar"] = partial(dist.all_reduce, torch.ones(1))
    return found


def _case(stage: int, batches: int) -> Case:
    """What the engine's settings are read from; its model is not built."""
    layout = {"dp": dist.get_world_size(), "zero": stage, "engine": "deepspeed"}
    work = {"micro_batch": 1, "micro_batches": batches, "seq_len": 16, "precision": "fp32"}
    return case_from({"model": DIVISIBLE, "layout": layout, "workload": work})


def _step(case: Case, model: Stack, kind: str) -> Call:
    x, batches = torch.ones(1, ENGINE_SIDE), case.workload.micro_batches
    if kind == "bare":
        optimizer = build_optimizer(model, case)

        def bare() -> None:
            for _ in range(batches):
                model(x).backward()
            clip_gradients(model.parameters(), case.recipe.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return bare
    engine = _engine(case, model)

    def step() -> None:
        for _ in range(batches):
            engine.backward(engine(x))
            engine.step()

    return step


def _engine(case: Case, model: Stack) -> Any:
    from parallelism.zero.trainer import make_deepspeed_trainer

    trainer: Any = make_deepspeed_trainer(model, case, torch.device("cpu"))
    return trainer.engine
