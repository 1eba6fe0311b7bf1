"""What one rank takes of a step's global batch: its sequences, in micro-batches, and its part of each sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from suite.case import Case
from suite.data import rank_slice
from suite.sequence_shards import shard_sequence

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

    def __len__(self) -> int:
        return len(self.ids)


def batch_of(case: Case, rank: int, step: int, ids: np.ndarray, labels: np.ndarray, device: torch.device) -> Batch:
    """The rank's part of a global batch of ids and labels, [global_batch, seq_len] each."""
    micro_batches = case.workload.micro_batches
    mine, goals = (_mine(case, rank, array, micro_batches, device) for array in (ids, labels))
    if not case.model.dropout:
        return Batch(mine, goals)
    keys = sequence_keys(case.recipe.seed, step, case.global_batch)[:, None]
    own = rank_slice(keys, case.layout.data_rank(rank), case.layout.data_ranks, micro_batches)[..., 0]
    return Batch(mine, goals, torch.from_numpy(np.ascontiguousarray(own)))


def held_out(case: Case, rank: int, ids: np.ndarray, labels: np.ndarray, device: torch.device) -> Batch:
    """The rank's part of a held-out batch, as one micro-batch without keys: nothing is dropped."""
    return Batch(_mine(case, rank, ids, 1, device), _mine(case, rank, labels, 1, device))


def sequence_keys(seed: int, step: int, count: int) -> np.ndarray:
    """One key for each sequence of a step's global batch, [count]: the same whatever the layout."""
    raw = np.random.PCG64(np.random.SeedSequence([seed, step])).random_raw(count)
    return (raw >> np.uint64(64 - KEY_BITS)).astype(np.int64)


def _mine(case: Case, rank: int, array: np.ndarray, micro_batches: int, device: torch.device) -> Tensor:
    layout = case.layout
    rows = rank_slice(array, layout.data_rank(rank), layout.data_ranks, micro_batches)
    rows = shard_sequence(rows, layout.cp, layout.place("cp", rank), layout.is_balanced)
    return torch.from_numpy(np.ascontiguousarray(rows)).to(device)
