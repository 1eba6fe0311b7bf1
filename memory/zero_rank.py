"""A rank under DeepSpeed's engine: which parts of which parameters are its own, and what it counts in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from parallelism.zero.config import (
    Parameter,
    bucket_elements,
    element_bytes,
    groups_of,
    padded_group,
    parameters_of,
)
from suite.case import Case
from suite.layout import Offload
from suite.operators import Ledger
from suite.tape import Backend


@dataclass(frozen=True)
class Rank:
    """A rank's part of the case under one of DeepSpeed's stages."""

    case: Case
    ledger: Ledger
    rank: int
    backend: Backend

    @property
    def ranks(self) -> int:
        """Ranks that the engine shards over: all of them."""
        return self.case.layout.dp

    @property
    def size(self) -> int:
        """Bytes of an element of a parameter or a gradient."""
        return element_bytes(self.case.workload.precision)

    @property
    def copies(self) -> bool:
        """Do collectives copy what they are given? gloo's gathers and scatters do."""
        return self.backend is Backend.CPU

    @property
    def is_offloaded(self) -> bool:
        """Does the optimizer work in host memory? Its gradients are then held there, in fp32, between steps too."""
        return self.case.layout.offload is not Offload.NONE

    @property
    def limit(self) -> int:
        """Elements of the gradient bucket."""
        return bucket_elements(self.case)

    @cached_property
    def groups(self) -> tuple[tuple[Parameter, ...], ...]:
        """The optimizer's groups."""
        return groups_of(self.ledger)

    @cached_property
    def by_name(self) -> dict[str, Parameter]:
        """Every parameter."""
        return {item.name: item for item in parameters_of(self.ledger)}

    @cached_property
    def pieces(self) -> dict[Parameter, tuple[tuple[int, int], ...]]:
        """Stages 1 and 2: (rank, elements) of each parameter, cut where its group's flat buffer goes from one rank to
        the next."""
        found = {}
        for group in self.groups:
            part, start = padded_group(group, self.ranks) // self.ranks, 0
            for item in group:
                end = start + item.elements
                owners = range(start // part, (end - 1) // part + 1)
                found[item] = tuple(
                    (owner, min(end, (owner + 1) * part) - max(start, owner * part)) for owner in owners
                )
                start = end
        return found

    def owned(self, item: Parameter) -> int:
        """Elements of a parameter that this rank updates in stages 1 and 2."""
        return dict(self.pieces[item]).get(self.rank, 0)

    def part(self, group: Sequence[Parameter]) -> int:
        """Elements of this rank's part of a group in stages 1 and 2."""
        return padded_group(group, self.ranks) // self.ranks

    def padding(self, group: Sequence[Parameter]) -> int:
        """Elements of that part that no parameter fills."""
        return self.part(group) - sum(map(self.owned, group))
