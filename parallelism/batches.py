"""What one rank takes of a step's global batch: its sequences, in micro-batches, and its part of each sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suite.case import Case
from suite.data import rank_slice
from suite.sequence_shards import shard_sequence
from suite.tasks.base import Examples

KEY_BITS = 40  # with a site's 20 below them, a seed of 60


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step."""

    ids: Tensor
    """[micro_batches, micro_batch, tokens]"""
    labels: Tensor
    """[micro_batches, micro_batch, tokens]"""
    keys: Tensor | None = None
    """[micro_batches, micro_batch]: one random key a sequence, for dropout; None where nothing is dropped"""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """by the name of the model's argument, [micro_batches, micro_batch, ...]: what else it reads"""
    weights: tuple[float, ...] = ()
    """what each micro-batch's mean loss counts, so that every label of the global batch counts the same; empty where
    all rows have equally many"""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What a data loader would hold on the device: all but keys."""
        return self.ids, self.labels, *self.extras.values()

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch, its tensors but for keys changed."""
        extras = {name: change(tensor) for name, tensor in self.extras.items()}
        return replace(self, ids=change(self.ids), labels=change(self.labels), extras=extras)

    def given(self, index: int) -> tuple[tuple[Tensor | None, ...], dict[str, Any]]:
        """What the model is called with for a micro-batch: (ids, labels, keys), and by name the rest."""
        keys = None if self.keys is None else self.keys[index]
        named: dict[str, Any] = {name: tensor[index] for name, tensor in self.extras.items()}
        if self.weights:
            named["weight"] = self.weights[index]
        return (self.ids[index], self.labels[index], keys), named


def batch_of(case: Case, rank: int, step: int, examples: Examples, device: torch.device) -> Batch:
    """The rank's part of a step's global batch."""
    batch = _own_part(case, rank, examples, case.workload.micro_batches, device)
    if not case.model.dropout:
        return batch
    keys = sequence_keys(case.recipe.seed, step, case.global_batch)[:, None]
    own = rank_slice(keys, case.layout.data_rank(rank), case.layout.data_ranks, case.workload.micro_batches)[..., 0]
    return replace(batch, keys=torch.from_numpy(np.ascontiguousarray(own)))


def held_out(case: Case, rank: int, examples: Examples, device: torch.device) -> Batch:
    """The rank's part of a held-out batch, as one micro-batch without keys: nothing is dropped."""
    return _own_part(case, rank, examples, 1, device)


def sequence_keys(seed: int, step: int, count: int) -> np.ndarray:
    """One key for each sequence of a step's global batch, [count]: the same whatever the layout."""
    raw = np.random.PCG64(np.random.SeedSequence([seed, step])).random_raw(count)
    return (raw >> np.uint64(64 - KEY_BITS)).astype(np.int64)


def _own_part(case: Case, rank: int, examples: Examples, micro_batches: int, device: torch.device) -> Batch:
    layout = case.layout

    def own_rows(array: np.ndarray) -> np.ndarray:
        columns = array.reshape(len(array), -1)
        rows = rank_slice(columns, layout.data_rank(rank), layout.data_ranks, micro_batches)
        return rows.reshape(*rows.shape[:2], *array.shape[1:])

    def own_tokens(array: np.ndarray) -> Tensor:
        rows = shard_sequence(own_rows(array), layout.cp, layout.place("cp", rank), layout.is_balanced)
        return torch.from_numpy(np.ascontiguousarray(rows)).to(device)

    extras = {
        name: torch.from_numpy(np.ascontiguousarray(own_rows(array))).to(device)
        for name, array in examples.extras.items()
    }
    weights: tuple[float, ...] = ()
    if (answers := examples.answers) is not None:
        mine = own_rows(answers).sum(axis=1)  # of each micro-batch
        weights = tuple((mine * layout.data_ranks * micro_batches / max(1, answers.sum())).tolist())
    return Batch(own_tokens(examples.ids), own_tokens(examples.labels), None, extras, weights)
