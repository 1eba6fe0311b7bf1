"""Bytes of a cache: every tensor that it keeps, as the allocator handed it out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from suite.allocations import mark, record_allocations
from suite.record import Component

#: block address -> bytes
Blocks = Mapping[int, int]
Held = Mapping[Component, tuple[Tensor, ...]]


@dataclass
class Weighed:
    """What a recording found, once it is over: bytes of a cache by what they are for."""

    nbytes: dict[Component, int] = field(default_factory=dict)
    addresses: dict[Component, frozenset[int]] = field(default_factory=dict)
    #: what lies in the host's memory, by torch's own word: a GPU's allocator does not know it
    on_host: dict[int, int] = field(default_factory=dict)

    def see(self, held: Held) -> None:
        """Now is the instant: remember where the cache lies."""
        mark("held")
        self.addresses = {
            component: frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors)
            for component, tensors in held.items()
        }
        storages = [tensor.untyped_storage() for tensors in held.values() for tensor in tensors]
        self.on_host = {each.data_ptr(): each.nbytes() for each in storages if each.device.type == "cpu"}

    def weigh(self, blocks: Blocks) -> None:
        """Sum what the allocator says of those addresses; one that it does not know counts nothing, and so shows."""
        self.nbytes = {
            component: sum(blocks.get(address, 0) for address in addresses)
            for component, addresses in self.addresses.items()
        }


@contextmanager
def weighed(device: torch.device) -> Iterator[Weighed]:
    """Record allocations inside the block, which calls `see` once; its bytes are there when the block has ended."""
    found = Weighed()
    if device.type == "cuda":
        yield found
        found.weigh({**found.on_host, **requested(torch.cuda.memory_snapshot())})
        return
    with record_allocations() as trace:
        yield found
    found.weigh({block.address: block.nbytes for block in trace.alive(trace.marks[-1].at)})


def requested(snapshot: list[dict[str, Any]]) -> Blocks:
    """Blocks of torch's caching allocator on CUDA that are in use: address -> bytes that were asked for."""
    return {
        block["address"]: block["requested_size"]
        for segment in snapshot
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    }
