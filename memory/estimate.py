"""Case -> how many bytes each rank holds at every moment of a step, as a ledger of Terms. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

from memory.events import Label
from memory.holding import Holding
from memory.optimizer import optimizer_transient
from memory.pipeline_buffers import pipeline_holdings
from memory.pipeline_walk import walk_pipeline
from memory.state import holdings
from memory.step import StepWalk, walk_step
from parallelism.schedules.ledgers import ledger_of_stages, stages_of_place
from suite.case import Case
from suite.cpu_workspace import has_tiles
from suite.layout import Layout
from suite.models.ledgers import ledger_of
from suite.operators import Ledger
from suite.record import MemoryEstimate, Moment, Term
from suite.share import WHOLE, Share, share_of
from suite.spec import Precision
from suite.tape import BF16_AUTOCAST, BF16_POLICY, FP32, Backend, Numerics

#: layouts of at most so many ranks are written out whole
RANKS_SHOWN = 8


def representative_ranks(layout: Layout) -> tuple[int, ...]:
    """Ranks that stand for all: all of a few, else the first rank of every place in the pipeline.

    Ranks of one place hold the same stages; of those the first has a largest shard.
    """
    if layout.world_size <= RANKS_SHOWN:
        return tuple(range(layout.world_size))
    return tuple(range(0, layout.world_size, layout.world_size // layout.pp))


def numerics_of(case: Case) -> Numerics:
    """The number formats of a case: FSDP's policy casts parameters, DeepSpeed's are bf16, else autocast casts."""
    if case.workload.precision is Precision.FP32:
        return FP32
    return BF16_POLICY if case.layout.fsdp > 1 or case.layout.is_deepspeed else BF16_AUTOCAST


def backend_of(case: Case) -> Backend:
    """The kernels that run on the case's device."""
    return Backend.CPU if case.cluster.device == "cpu" else Backend.CUDA


def threads_of(case: Case) -> int:
    """Threads that torch gives a rank on the CPU: the machine's cores shared among its ranks."""
    return max(1, len(os.sched_getaffinity(0)) // case.cluster.per_node)


@dataclass(frozen=True)
class MemoryModel:
    """A case's memory: ledgers and walks are made once and serve every rank that is alike."""

    case: Case

    @cached_property
    def ledger(self) -> Ledger:
        """The operator ledger of one micro-batch of the whole model."""
        return self._ledger(WHOLE)

    def ledger_of_share(self, rank: int) -> Ledger:
        """The operator ledger of one micro-batch of a rank's share of the whole model, every pipeline stage of it."""
        return self._whole(share_of(self.case.layout, rank))

    def ledger_of_rank(self, rank: int) -> Ledger:
        """The operator ledger of one micro-batch of what a rank holds: its share of its stages."""
        share, stage = self._kind(rank)
        return self._ledgers(share, stage)

    def step(self, rank: int = 0) -> StepWalk:
        """The walk over one step of a rank."""
        return self._steps(*self._kind(rank), rank if self.case.layout.is_deepspeed else 0)

    def peak_bytes(self, rank: int = 0) -> int:
        """Bytes of the largest moment, without writing the terms down."""
        ledger = self.ledger_of_rank(rank)
        held = sum(item.nbytes for item in self.held(rank))
        instants = self.step(rank).instants
        passing = optimizer_transient(self.case, ledger, rank)
        stepping = instants[Moment.AFTER_BACKWARD].nbytes + (passing.nbytes if passing else 0)
        return held + max(stepping, *(instant.nbytes for instant in instants.values()))

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
        return share_of(self.case.layout, rank), self.case.layout.place("pp", rank)

    @cached_property
    def _whole(self) -> Callable[[Share], Ledger]:
        """Share -> ledger of its part of the whole model; each made once."""
        return cache(lambda share: self.ledger if share == WHOLE else self._ledger(share))

    @cached_property
    def _ledgers(self) -> Callable[[Share, int], Ledger]:
        """Share, place in the pipeline -> ledger; each made once."""

        @cache
        def ledger(share: Share, place: int) -> Ledger:
            whole = self._whole(share)
            if self.case.layout.pp == 1:
                return whole
            return ledger_of_stages(self.case, whole, stages_of_place(self.case, place))

        return ledger

    @cached_property
    def _steps(self) -> Callable[[Share, int, int], StepWalk]:
        """Share, place in the pipeline, rank where an engine makes them differ -> walk; each made once."""

        @cache
        def step(share: Share, place: int, rank: int) -> StepWalk:
            formats = numerics_of(self.case), backend_of(self.case)
            if self.case.layout.pp > 1:
                return walk_pipeline(self.case, self._whole(share), place, *formats)
            return walk_step(self.case, self._ledgers(share, place), *formats, rank)

        return step

    def _ledger(self, share: Share) -> Ledger:
        case = self.case
        return ledger_of(
            case.model, case.workload, case.layout.recompute, numerics_of(case), backend_of(case),
            threads_of(case), has_tiles(), share,
        )  # fmt: skip


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
