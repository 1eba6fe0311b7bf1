"""What FSDP2 moves: units of parameters, the number formats and group sizes of their exchange, and which part of the
reduction each micro-batch does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from parallelism.data.fsdp import is_cut_across, padded_shard
from suite.case import Case
from suite.formats import formats_of
from suite.layout import Layout, Offload, Reduction
from suite.operators import Weight
from suite.tape import Backend, Numerics


@dataclass(frozen=True)
class Parameter:
    """Elements of a parameter: all of them, and a rank's padded shard, one of so many."""

    elements: int
    padded: int
    ranks: int
    is_cut_across: bool = False  # along dimension 1: copied on its way to what is gathered, and to what is reduced

    @property
    def flat(self) -> int:
        """Every rank's padded shard."""
        return self.ranks * self.padded


@dataclass(frozen=True)
class Unit:
    """Parameters that are gathered together. Sizes are in bytes on each rank.

    With expert parallelism a block's experts are gathered over fewer ranks than the rest: parts, gathered and reduced
    one after the other.
    """

    parameters: tuple[Parameter, ...]

    @cached_property
    def parts(self) -> tuple[Unit, ...]:
        """What is gathered over as many ranks, in the order of the parameters."""
        ranks = dict.fromkeys(item.ranks for item in self.parameters)
        if len(ranks) <= 1:
            return (self,)
        return tuple(Unit(tuple(item for item in self.parameters if item.ranks == each)) for each in ranks)

    def shard(self, element: int) -> int:
        """This rank's padded shards, in elements of so many bytes."""
        return element * self._padded

    def flat(self, element: int) -> int:
        """Every rank's padded shards: what a gather makes, and what a reduce-scatter takes."""
        return element * self._flat

    def part(self, exchange: Exchange) -> int:
        """What a rank keeps after it is resharded to n, in the compute type."""
        return self.flat(exchange.compute_bytes) // exchange.reshard_to

    def gradients(self, element: int) -> int:
        """Whole gradients."""
        return element * self._elements

    @cached_property
    def cut_across(self) -> tuple[Parameter, ...]:
        """Those that are copied once more than the others."""
        return tuple([item for item in self.parameters if item.is_cut_across])

    @cached_property
    def _padded(self) -> int:
        return sum([item.padded for item in self.parameters])

    @cached_property
    def _flat(self) -> int:
        return sum([item.flat for item in self.parameters])

    @cached_property
    def _elements(self) -> int:
        return sum([item.elements for item in self.parameters])

    def padded_copies(self, element: int) -> int:
        """Whole gradients with padded rows, of those parameters that need padding."""
        sizes = ((item.elements, item.flat) for item in self.parameters)
        return element * sum(padded for elements, padded in sizes if padded != elements)

    def largest_padded(self, element: int) -> int:
        """The largest whole gradient with padded rows."""
        return element * max(item.flat for item in self.parameters)


def shards_of(layout: Layout) -> tuple[int, int]:
    """Ranks that a unit is sharded over, and those that a rank's experts are."""
    return layout.shard_ranks, layout.expert_shard_ranks


def unit_of(weights: Sequence[Weight], ranks: int, expert_ranks: int) -> Unit:
    """The unit of these parameters; a tied weight belongs to its owner's unit."""
    owned = ((weight, expert_ranks if weight.is_expert else ranks) for weight in weights if not weight.tied_to)
    return Unit(tuple(_parameter(weight, over) for weight, over in owned))


def _parameter(weight: Weight, ranks: int) -> Parameter:
    is_across = is_cut_across(weight.values, ranks, weight.is_expert)
    return Parameter(weight.elements, padded_shard(weight, ranks), ranks, is_across)


@dataclass(frozen=True)
class Exchange:
    """How a case's units are gathered and reduced. Bytes are those of an element."""

    compute_bytes: int
    reduce_bytes: int
    is_replicated: bool  # HSDP: are the shards' sums averaged over replicas?
    reshard_to: int  # ranks that a unit is resharded over after forward; 0: all of them, or none
    is_offloaded: bool
    backend: Backend
    master_bytes: int  # of parameters and gradients as they are kept

    @property
    def casts(self) -> bool:
        """Are shards cast before they are gathered?"""
        return self.compute_bytes != self.master_bytes

    @property
    def converts(self) -> bool:
        """Are gradients reduced in another type than they are computed in?"""
        return self.compute_bytes != self.reduce_bytes


def exchange_of(case: Case, numerics: Numerics, backend: Backend) -> Exchange:
    """The exchange of a sharded case."""
    layout, formats = case.layout, formats_of(case)
    to = layout.reshard_after_forward
    return Exchange(
        compute_bytes=numerics.weights.nbytes,
        reduce_bytes=formats.reduced.nbytes,
        is_replicated=layout.dp > 1,
        reshard_to=0 if isinstance(to, bool) else to,
        is_offloaded=layout.offload is Offload.PARAMETERS,
        backend=backend,
        master_bytes=formats.parameters.nbytes,
    )


@dataclass(frozen=True)
class Micro:
    """What one micro-batch of a step finds of the gradients of those before, and what it does to its own."""

    reduces: bool = True  # reduce-scatters
    all_reduces: bool = True  # and, over replicas, all-reduces: the shards are whole then
    has_whole: bool = False  # finds whole gradients
    has_partial: bool = False  # finds shards that are not summed over the replicas
    has_shards: bool = False  # finds shards that are
    reshards: bool = True  # frees gathered parameters after backward


def micro_of(layout: Layout, index: int, micro_batches: int) -> Micro:
    """Micro-batch `index` of so many."""
    is_first, is_last = index == 0, index == micro_batches - 1
    if layout.reduction is Reduction.STEP:
        return Micro(reduces=is_last, has_whole=not is_first)
    if layout.dp > 1:
        return Micro(all_reduces=is_last, has_partial=not is_first)
    return Micro(has_shards=not is_first)
