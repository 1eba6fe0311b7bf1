"""Holding: a row of what a rank keeps; and the parameters that it keeps them for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from suite.case import Case
from suite.layout import Offload
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


def parameter_shapes(ledger: Ledger) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(how often, shape) of every parameter that owns its storage."""
    for segment, count in ledger.counts.items():
        for weight in segment.weights:
            if not weight.tied_to:
                yield count, shape_of(weight)


def shape_of(weight: Weight) -> tuple[int, ...]:
    """A weight's shape in numbers."""
    return weight.values


def is_on_host(case: Case) -> bool:
    """Does FSDP2 keep shards, their gradients and the optimizer's state in host memory?"""
    return case.layout.fsdp > 1 and case.layout.offload is Offload.PARAMETERS
