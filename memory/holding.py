"""Holding: a row of what a rank keeps; and the parameters that it keeps it for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parallelism.data.fsdp import padded_shard, weight_ranks
from suite.case import Case
from suite.layout import Layout, Offload
from suite.operators import Ledger, Weight
from suite.record import Component


@dataclass(frozen=True, slots=True)
class Holding:
    """So many bytes of a component, why, and by whose word."""

    component: Component
    nbytes: int
    name: str
    formula: str
    source: str
    is_lazy: bool = False  # made in the first step, and kept


def owned_weights(ledger: Ledger) -> Iterator[tuple[int, Weight]]:
    """(how often, weight) of every parameter that owns its storage."""
    for segment, count in ledger.counts.items():
        for weight in segment.weights:
            if not weight.tied_to:
                yield count, weight


def padded_shards(ledger: Ledger, layout: Layout) -> Iterator[tuple[int, int]]:
    """(how often, elements of this rank's padded shard) of every parameter that owns its storage."""
    for count, weight in owned_weights(ledger):
        yield count, padded_shard(weight, weight_ranks(weight, layout))


def shape_of(weight: Weight) -> tuple[int, ...]:
    """A weight's shape in numbers."""
    return weight.values


def is_on_host(case: Case) -> bool:
    """Does FSDP2 keep shards, their gradients and the optimizer's state in host memory?"""
    return case.layout.fsdp > 1 and case.layout.offload is Offload.PARAMETERS
