"""Stores that hold the entries of all sequences in one row, [1, entries, heads, width], so that each has its own."""

from __future__ import annotations

import torch
from torch import Tensor

from suite.caches.store import Store


def tensors_of(store: Store) -> tuple[Tensor, ...]:
    """Everything that it keeps, each with the entries as its second dimension."""
    return store.payload, *store.scales


def zeroed(store: Store) -> Store:
    """The store, its entries 0: what is not yet written is read beside tokens, and only a finite number times a weight
    of 0 is nothing."""
    for tensor in tensors_of(store):
        tensor.zero_()
    return store


def copy_entries(store: Store, source: slice, target: slice) -> None:
    """Let the target entries hold what the source entries do, codes and scales as they are."""
    for tensor in tensors_of(store):
        tensor[:, target] = tensor[:, source]


def reorder_sequences(store: Store, rows: Tensor) -> None:
    """Let the entries of sequence i hold what those of rows[i] do, where every sequence has the same number."""
    for tensor in tensors_of(store):
        own = tensor[0].unflatten(0, (len(rows), tensor.shape[1] // len(rows)))
        own.copy_(torch.index_select(own, 0, rows))
