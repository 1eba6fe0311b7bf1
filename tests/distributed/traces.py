"""What a training run computed, whole: every step's loss, norm and gradients, and the parameters before and after.

It is recorded through the very code that the worker runs (make_trainer), on a global batch of random tokens that the
layout cannot change. Each rank records what it holds; putting the ranks' pieces together is done afterwards and by
other means than the strategy's own, so that a collective at fault cannot hide itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
import torch
import torch._dynamo  # the first optimizer imports it: here, so that forked ranks find it done
import torch.distributed.fsdp  # likewise
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from parallelism import building
from parallelism.batches import Batch, batch_of
from parallelism.mesh import build_mesh
from parallelism.strategies import parallelize
from parallelism.training import Trainer
from suite.case import Case
from suite.data import made_up_examples
from suite.memory_probe import OPTIMIZER

STEPS = 3
CPU = torch.device("cpu")

RANKS_DIFFER = "is not what another rank holds there"

Spread = Callable[[nn.Module, DeviceMesh | None, Case], nn.Module]


@dataclass(frozen=True)
class Piece:
    """What one rank holds of a tensor: the values, the whole tensor's shape, and where in it they start."""

    tensor: Tensor
    shape: tuple[int, ...]
    start: tuple[int, ...]

    @property
    def box(self) -> tuple[slice, ...]:
        """The part of the whole tensor that this is."""
        return tuple(slice(first, first + size) for first, size in zip(self.start, self.tensor.shape, strict=True))


@dataclass(frozen=True)
class RankTrace:
    """One rank's record of a run."""

    losses: tuple[float, ...]
    """of each step on this rank's rows; then of the last step's rows once more, with the final parameters. 0 on a
    pipeline rank without the loss"""
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

    What several ranks hold is the first one's; where another holds something else, `strayed` says so.
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
    gradients: list[dict[str, Piece]] = []
    is_tied = case.model.tied

    def watch(phase: str) -> None:
        if phase == OPTIMIZER:  # told just before the gradients are clipped
            grads = ((name, item.grad) for name, item in trainer.model.named_parameters())
            gradients.append(pieces(grads, is_tied))

    def spread_in_format(model: nn.Module, mesh: DeviceMesh | None, case: Case) -> nn.Module:
        return spread(model.double() if double else model, mesh, case)

    with patch.object(building, "parallelize", spread_in_format), patch.object(building, "Trainer", trainer_type):
        trainer = building.make_trainer(case, build_mesh(case.layout, CPU.type), CPU, watch)
    start = pieces(trainer.model.named_parameters(), is_tied)
    results = [trainer.step(step, rank_batch(case, rank, step)) for step in range(STEPS)]
    end = pieces(trainer.model.named_parameters(), is_tied)
    last = trainer.evaluate(one_by_one(rank_batch(case, rank, STEPS - 1)))
    losses = tuple(loss.item() for loss in (*(result.loss for result in results), last))
    return RankTrace(losses, tuple(result.gradient_norm.item() for result in results), tuple(gradients), start, end)


def rank_batch(case: Case, rank: int, step: int) -> Batch:
    """One rank's part of a step's global batch, as the worker cuts it."""
    return batch_of(case, rank, step, made_up_examples(case, step, case.global_batch), CPU)


def one_by_one(batch: Batch) -> Iterator[Batch]:
    """Each micro-batch as a batch of its own, without keys."""
    for index in range(len(batch)):
        part = slice(index, index + 1)
        yield replace(batch.map(lambda tensor: tensor[part]), keys=None, weights=batch.weights[part])  # noqa: B023


def pieces(tensors: Iterable[tuple[str, Tensor | None]], is_tied: bool = False) -> dict[str, Piece]:
    """Copies of what this rank holds, by the parameter's name in the bare model. A pipeline's tied head may be a
    parameter of its own: the embedding by another name, or a tensor too many if the two are not the same bits."""
    held: dict[str, Piece] = {}
    for name, tensor in tensors:
        if tensor is not None:
            plain, piece = plain_name(name), _piece(tensor)
            plain = "embedding.weight" if is_tied and plain == "head.weight" else plain
            is_copy = plain in held and torch.equal(held[plain].tensor, piece.tensor)
            held[plain if plain not in held or is_copy else f"{plain}, another"] = piece
    return held


def plain_name(name: str) -> str:
    """A parameter's name without the wrappers that strategies put around modules, and without a stage's number."""
    bare = re.sub(r"^\d+\.", "", name).removeprefix("module.")
    return bare.replace("_checkpoint_wrapped_module.", "")


def _piece(tensor: Tensor) -> Piece:
    if not isinstance(tensor, DTensor):
        return Piece(tensor.detach().clone(), tuple(tensor.shape), (0,) * tensor.dim())
    local = tensor.to_local().detach().clone()
    start = _first_element(tensor)
    return Piece(local, tuple(tensor.shape), start if local.numel() else (0,) * tensor.dim())


def _first_element(tensor: DTensor) -> tuple[int, ...]:
    """Where in the whole tensor this rank's part starts, counted here and not by DTensor.

    Each mesh dimension that shards cuts what is left into parts of ceil(size / ranks), the last ones smaller. Two that
    shard one dimension cut in the mesh's order, except for FSDP's, which comes outside of tensor parallelism's in the
    mesh and cuts after it: a _StridedShard.
    """
    mesh = tensor.device_mesh
    placed = list(zip(tensor.placements, mesh.get_coordinate() or (), mesh.shape, strict=True))
    strange = [each for each, _, _ in placed if not isinstance(each, Shard | Replicate | _StridedShard)]
    assert not strange, f"a gradient that is still {strange}"
    cuts = [cut for cut in placed if not isinstance(cut[0], Replicate)]
    begin, length = [0] * tensor.dim(), list(tensor.shape)
    for placement, place, ranks in sorted(cuts, key=lambda cut: isinstance(cut[0], _StridedShard)):
        dim = placement.dim
        step = -(-length[dim] // ranks)
        first = min(place * step, length[dim])
        begin[dim] += first
        length[dim] = min(step, length[dim] - first)
    assert tuple(length) == tuple(tensor.to_local().shape), f"{length} is not what rank {place} holds"
    return tuple(begin)


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
    gradients = []
    for step, held in enumerate(steps):
        whole, apart = _joined(f"gradient of step {step}", held)
        gradients.append(whole)
        strayed += apart
    start, apart_at_start = _joined("first parameter", starts)
    end, apart_at_end = _joined("parameter", ends)
    return Trace(
        losses=tuple(_mean_loss(losses) for losses in zip(*(rank.losses for rank in ranks), strict=True)),
        norms=first.norms,
        gradients=tuple(gradients),
        start=start,
        end=end,
        strayed=(*apart_at_start, *strayed, *apart_at_end),
    )


def _mean_loss(losses: Sequence[float]) -> float:
    """Of the ranks that have one: a pipeline's others say 0."""
    return float(np.mean([loss for loss in losses if loss] or [0.0]))


def _joined(what: str, ranks: Sequence[Mapping[str, Piece]]) -> tuple[dict[str, Tensor], list[str]]:
    """Whole tensors, each rank's part copied to its place; and what two ranks hold both, but not bit for bit alike.

    What no rank holds stays NaN, which is close to nothing.
    """
    whole: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    strayed = []
    for rank, held in enumerate(ranks):
        for name, piece in held.items():
            if name not in whole:
                whole[name] = torch.full(piece.shape, torch.nan, dtype=piece.tensor.dtype)
                seen[name] = torch.zeros(piece.shape, dtype=torch.bool)
            values, is_seen = whole[name][piece.box], seen[name][piece.box]
            if (is_seen & (values != piece.tensor)).any():
                strayed.append(f"{what}, {name}: rank {rank} {RANKS_DIFFER}")
            values[~is_seen] = piece.tensor[~is_seen]
            is_seen[:] = True
    return whole, strayed
