"""What a training run computed, whole: every step's loss, norm and gradients, and the parameters before and after.

It is recorded through the very code that the worker runs (build_model, parallelize, Trainer), on a global batch of
random tokens that the layout cannot change. Each rank records what it holds; putting the ranks' pieces together is
done afterwards and by other means than the strategy's own, so that a collective at fault cannot hide itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
import torch._dynamo  # the first optimizer imports it: here, so that forked ranks find it done
import torch.distributed.fsdp  # likewise
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from parallelism.batches import Batch, batch_of
from parallelism.mesh import build_mesh
from parallelism.strategies import parallelize
from parallelism.training import Trainer, build_model, build_optimizer
from suite.case import Case
from suite.memory_probe import OPTIMIZER

STEPS = 3
CPU = torch.device("cpu")

RANKS_DIFFER = "is not rank 0's"

Spread = Callable[[nn.Module, DeviceMesh | None, Case], nn.Module]


@dataclass(frozen=True)
class Piece:
    """What one rank holds of a tensor: all of it, or its part along a dimension."""

    tensor: Tensor
    dim: int | None


@dataclass(frozen=True)
class RankTrace:
    """One rank's record of a run."""

    losses: tuple[float, ...]
    """of each step on this rank's rows; then of the last step's rows once more, with the final parameters"""
    norms: tuple[float, ...]
    """gradient norm of each step, as the trainer reports it"""
    gradients: tuple[Mapping[str, Piece], ...]
    """of each step, by parameter, before clipping"""
    start: Mapping[str, Piece]
    """parameters once they are built and spread"""
    end: Mapping[str, Piece]
    """parameters after the last step"""


@dataclass(frozen=True)
class Trace:
    """A run's record, whatever its layout: RankTrace's fields, with losses averaged and tensors whole.

    What every rank holds is rank 0's; where another rank holds something else, `strayed` says so.
    """

    losses: tuple[float, ...]
    norms: tuple[float, ...]
    gradients: tuple[Mapping[str, Tensor], ...]
    start: Mapping[str, Tensor]
    end: Mapping[str, Tensor]
    strayed: tuple[str, ...]


def record(
    case: Case,
    rank: int,
    spread: Spread = parallelize,
    trainer_type: Callable[..., Trainer] = Trainer,
    double: bool = False,
) -> RankTrace:
    """Train the case for a few steps on this rank and keep everything it computed. `double` does it in fp64."""
    # the loss asks for fp32 with `float()`, which from fp64 would round: there it gets fp64
    with patch.object(Tensor, "float", Tensor.double) if double else nullcontext():
        return _record(case, rank, spread, trainer_type, double)


def _record(case: Case, rank: int, spread: Spread, trainer_type: Callable[..., Trainer], double: bool) -> RankTrace:
    bare = build_model(case, CPU)
    model = spread(bare.double() if double else bare, build_mesh(case.layout, CPU.type), case)
    start = pieces(model.named_parameters())
    gradients: list[dict[str, Piece]] = []

    def watch(phase: str) -> None:
        if phase == OPTIMIZER:  # told just before the gradients are clipped
            gradients.append(pieces((name, item.grad) for name, item in model.named_parameters()))

    trainer = trainer_type(case, model, build_optimizer(model, case), CPU, watch)
    results = [trainer.step(step, rank_batch(case, rank, step)) for step in range(STEPS)]
    end = pieces(model.named_parameters())
    whole = rank_batch(case, rank, STEPS - 1)
    last = trainer.evaluate(Batch(ids[None], labels[None]) for ids, labels in zip(whole.ids, whole.labels, strict=True))
    losses = tuple(loss.item() for loss in (*(result.loss for result in results), last))
    return RankTrace(losses, tuple(result.gradient_norm.item() for result in results), tuple(gradients), start, end)


def rank_batch(case: Case, rank: int, step: int) -> Batch:
    """One rank's part of a step's global batch, as the worker cuts it."""
    shape = (case.global_batch, case.workload.seq_len + 1)
    rows = np.random.default_rng(step).integers(case.model.vocab, size=shape)
    return batch_of(case, rank, step, rows[:, :-1], rows[:, 1:], CPU)


def pieces(tensors: Iterable[tuple[str, Tensor | None]]) -> dict[str, Piece]:
    """Copies of what this rank holds, by the parameter's name in the bare model."""
    return {plain_name(name): _piece(tensor) for name, tensor in tensors if tensor is not None}


def plain_name(name: str) -> str:
    """A parameter's name without the wrappers that strategies put around modules."""
    return name.removeprefix("module.").replace("_checkpoint_wrapped_module.", "")


def _piece(tensor: Tensor) -> Piece:
    if not isinstance(tensor, DTensor):
        return Piece(tensor.detach().clone(), None)
    (placement,) = tensor.placements
    assert isinstance(placement, Shard | Replicate), f"a gradient that is still {placement}"
    return Piece(tensor.to_local().detach().clone(), placement.dim if isinstance(placement, Shard) else None)


def merged(ranks: Sequence[RankTrace]) -> Trace:
    """The ranks' records as one."""
    first = ranks[0]
    steps = [[rank.gradients[step] for rank in ranks] for step in range(len(first.gradients))]
    starts, ends = [rank.start for rank in ranks], [rank.end for rank in ranks]
    strayed = [
        f"norms {rank.norms} of rank {place} {RANKS_DIFFER}"
        for place, rank in enumerate(ranks)
        if rank.norms != first.norms
    ]
    for what, held in (*((f"gradient of step {step}", held) for step, held in enumerate(steps)), ("parameter", ends)):
        strayed += _strayed(what, held)
    return Trace(
        losses=tuple(float(np.mean(losses)) for losses in zip(*(rank.losses for rank in ranks), strict=True)),
        norms=first.norms,
        gradients=tuple(_whole(held) for held in steps),
        start=_whole(starts),
        end=_whole(ends),
        strayed=(*_strayed("first parameter", starts), *strayed),
    )


def _whole(ranks: Sequence[Mapping[str, Piece]]) -> dict[str, Tensor]:
    return {
        name: piece.tensor if piece.dim is None else torch.cat([mine[name].tensor for mine in ranks], piece.dim)
        for name, piece in ranks[0].items()
    }


def _strayed(what: str, ranks: Sequence[Mapping[str, Piece]]) -> list[str]:
    """What every rank should hold alike, bit for bit, and some rank does not."""
    return [
        f"{what}, {name}: rank {rank} {RANKS_DIFFER}"
        for name, piece in ranks[0].items()
        for rank, mine in enumerate(ranks)
        if piece.dim is None and not torch.equal(piece.tensor, mine[name].tensor)
    ]
