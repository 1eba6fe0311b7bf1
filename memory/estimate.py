"""Case -> how many bytes each rank holds at every moment of a step, as a ledger of Terms. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

from memory.events import Label
from memory.holding import Holding
from memory.optimizer import optimizer_transient
from memory.pipeline_buffers import pipeline_holdings
from memory.pipeline_walk import Pipeline, walk_pipeline
from memory.state import holdings
from memory.step import StepWalk, walk_step
from suite.case import Case
from suite.cpu_workspace import has_tiles
from suite.formats import formats_of
from suite.layout import Layout
from suite.memo import Memo
from suite.models.ledgers import ledger_of
from suite.operators import Ledger
from suite.received import Routing, mean_rows
from suite.record import MemoryEstimate, Moment, Term
from suite.share import WHOLE, Share, share_of
from suite.tape import Backend

#: layouts of at most so many ranks are written out whole
RANKS_SHOWN = 8
#: fields of a workload that the ledger of a micro-batch does not depend on
BESIDE_THE_LEDGER = frozenset({"micro_batches", "optimizer", "optimizer_kernel"})


def representative_ranks(layout: Layout) -> tuple[int, ...]:
    """Ranks that stand for all: all of a few, else the first rank of every place in the pipeline.

    Ranks of one place hold the same stages; of those the first has a largest shard.
    """
    if layout.world_size <= RANKS_SHOWN:
        return tuple(range(layout.world_size))
    return tuple(range(0, layout.world_size, layout.world_size // layout.pp))


def backend_of(case: Case) -> Backend:
    """The kernels that run on the case's device."""
    return Backend.CPU if case.cluster.device == "cpu" else Backend.CUDA


def threads_of(case: Case) -> int:
    """Threads that torch gives a rank on the CPU: the machine's cores shared among its ranks."""
    return max(1, len(os.sched_getaffinity(0)) // case.cluster.per_node)


@dataclass(frozen=True, slots=True)
class Outside:
    """Bytes that a rank has beside its walk: held between steps, and needed in passing by the optimizer's step."""

    held: int
    stepping: int

    def total(self, highest: int, after_backward: int) -> int:
        """Bytes of the largest moment, given the walk's highest level and the one that the optimizer starts from."""
        return self.held + max(highest, after_backward + self.stepping)


@dataclass(frozen=True)
class MemoryModel:
    """A case's memory: ledgers and walks are made once and serve every rank that is alike. With a `memo` that other
    cases have they serve those too."""

    case: Case
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)
    received: Routing = field(default_factory=dict)
    """with expert parallelism, a recorded routing: of each micro-batch, or of one for all; ranks without one are taken
    to be as the workload's imbalance has them. In a pipeline every micro-batch is taken to be as their mean"""

    @cached_property
    def ledger(self) -> Ledger:
        """The operator ledger of one micro-batch of the whole model."""
        return self._ledger(WHOLE)

    def ledger_of_share(self, rank: int) -> Ledger:
        """The operator ledger of one micro-batch of a rank's share of the whole model, every pipeline stage of it."""
        return self._whole(self._share(rank))

    def ledgers_of_share(self, rank: int) -> tuple[Ledger, ...]:
        """The same of each micro-batch, where their routing is recorded; else the one that all have."""
        return tuple(map(self._whole, self._shares(rank)))

    def _share(self, rank: int) -> Share:
        """A rank's share of the model, and of what is routed to it on average."""
        share = share_of(self.case.layout, rank)
        return replace(share, received=mean_rows(self.received[rank])) if rank in self.received else share

    def _shares(self, rank: int) -> tuple[Share, ...]:
        """A rank's share in each micro-batch; one where they are alike."""
        share = self._share(rank)
        return tuple(replace(share, received=rows) for rows in self.received.get(rank, ())) or (share,)

    def ledger_of_rank(self, rank: int) -> Ledger:
        """The operator ledger of one micro-batch of what a rank holds: its share of its stages."""
        share, stage = self._kind(rank)
        return self._ledgers(share, stage)

    def step(self, rank: int = 0) -> StepWalk:
        """The walk over one step of a rank."""
        share, place = self._kind(rank)
        shares = (share,) if self.case.layout.pp > 1 else self._shares(rank)
        return self._steps(shares, place, rank if self.case.layout.is_deepspeed else 0)

    def peak_bytes(self, rank: int = 0) -> int:
        """Bytes of the largest moment, without writing the terms down."""
        walk = self.step(rank)
        return self.outside(rank).total(walk.highest, walk.after_backward)

    def outside(self, rank: int) -> Outside:
        """What a rank holds and takes beside its walk."""
        passing = optimizer_transient(self.case, self.ledger_of_rank(rank), rank)
        return Outside(sum(item.nbytes for item in self.held(rank)), passing.nbytes if passing else 0)

    def estimate(self, rank: int = 0) -> MemoryEstimate:
        """Every term of every moment on one rank."""
        ledger = self.ledger_of_rank(rank)
        held = self.held(rank)
        terms = []
        for moment in Moment:
            terms += [_held(item, moment, rank) for item in held if _exists(item, moment)]
        alive = dict(self.step(rank).compositions())
        # clipping allocates scalars alone, so the optimizer's highest instant is the level it starts from, and what
        # its step needs in passing
        alive.setdefault(Moment.OPTIMIZER_PEAK, alive[Moment.AFTER_BACKWARD])
        passing = optimizer_transient(self.case, ledger, rank)
        if passing is not None:
            terms.append(_held(passing, Moment.OPTIMIZER_PEAK, rank))
        for moment, labels in alive.items():
            terms += [_alive(label, nbytes, moment, rank) for label, nbytes in labels.items() if nbytes]
        return MemoryEstimate(tuple(terms), rank)

    def held(self, rank: int) -> tuple[Holding, ...]:
        """What a rank holds between steps."""
        held = holdings(self.case, self.ledger_of_rank(rank), rank)
        layout = self.case.layout
        return held + pipeline_holdings(self.case, layout.place("pp", rank)) if layout.pp > 1 else held

    def _kind(self, rank: int) -> tuple[Share, int]:
        """What tells ranks apart whose ledgers and walks differ: their share, and their place in the pipeline."""
        return self._share(rank), self.case.layout.place("pp", rank)

    @cached_property
    def _whole(self) -> Callable[[Share], Ledger]:
        """Share -> ledger of its part of the whole model; each made once."""
        return cache(lambda share: self.ledger if share == WHOLE else self._ledger(share))

    @cached_property
    def _ledgers(self) -> Callable[[Share, int], Ledger]:
        """Share, place in the pipeline -> ledger; each made once."""

        @cache
        def ledger(share: Share, place: int) -> Ledger:
            return self._whole(share) if self.case.layout.pp == 1 else self.pipeline(share).own(place)

        return ledger

    @cached_property
    def pipeline(self) -> Callable[[Share], Pipeline]:
        """Share -> the pipeline of ranks with that share."""
        formats = formats_of(self.case).numerics, backend_of(self.case)
        return cache(lambda share: Pipeline(self.case, self._whole(share), *formats, self.memo))

    @cached_property
    def _steps(self) -> Callable[[tuple[Share, ...], int, int], StepWalk]:
        """Shares of the micro-batches, place in the pipeline, rank where an engine makes them differ -> walk; each made
        once."""

        @cache
        def step(shares: tuple[Share, ...], place: int, rank: int) -> StepWalk:
            if self.case.layout.pp > 1:
                return walk_pipeline(self.pipeline(shares[0]), place)
            formats = formats_of(self.case).numerics, backend_of(self.case)
            ledgers = [self._ledgers(share, place) for share in shares]
            return walk_step(self.case, ledgers, *formats, rank, self.memo)

        return step

    def _ledger(self, share: Share) -> Ledger:
        case, numerics = self.case, formats_of(self.case).numerics
        tiles = has_tiles(kind=numerics.compute)
        facts = case.layout.recompute, numerics, backend_of(case), threads_of(case), tiles, share
        work = tuple(value for name, value in vars(case.workload).items() if name not in BESIDE_THE_LEDGER)
        return self.memo.once(("ledger", case.model, work, facts), lambda: ledger_of(case.model, case.workload, *facts))


def _exists(item: Holding, moment: Moment) -> bool:
    """Does the moment find it? The first step makes the optimizer's state, and some buffers."""
    return moment is not Moment.INIT or not item.is_lazy


def _held(item: Holding, moment: Moment, rank: int) -> Term:
    return Term(item.component, moment, item.nbytes, f"{item.name}: {item.formula}", item.source, rank)


def _alive(label: Label, nbytes: int, moment: Moment, rank: int) -> Term:
    count = nbytes / label.unit if label.unit else 1
    times = f"{count:,.0f} x " if count > 1 and count == int(count) else ""
    return Term(label.component, moment, nbytes, f"{label.name}: {times}{label.formula}", label.source, rank)


def estimate_memory(case: Case, rank: int = 0) -> MemoryEstimate:
    """Bytes on one rank at every moment of a training step.

    Counted: everything the framework's allocator hands out, from parameters to kernel workspace. Not counted:
    scalars, the Python process, the CUDA context, communicators' own buffers.
    """
    return MemoryModel(case).estimate(rank)
