"""What each stage of a pipeline holds, and which stages are alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from parallelism.schedules.ledgers import ledger_of_stages
from parallelism.schedules.stages import Stage
from suite.case import Case
from suite.operators import Ledger, Segment


@dataclass(frozen=True, eq=False)
class StageLedgers:
    """A pipeline's stages and the ledger of each, parts of one model's."""

    stages: tuple[Stage, ...]
    ledgers: tuple[Ledger, ...]

    @classmethod
    def of(cls, case: Case, ledger: Ledger, stages: tuple[Stage, ...]) -> StageLedgers:
        """Of the whole model's ledger; without a pipeline it is the only stage's."""
        if case.layout.pp == 1:
            return cls(stages, (ledger,))
        return cls(stages, tuple(ledger_of_stages(case, ledger, (stage,)) for stage in stages))

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        """Of each stage: the first that holds the same segments."""
        known: dict[tuple[Segment, ...], int] = {}
        return tuple([known.setdefault(segments, index) for index, segments in enumerate(self.segments)])

    @cached_property
    def segments(self) -> tuple[tuple[Segment, ...], ...]:
        """Of each stage: those that it holds."""
        return tuple([tuple([placed.segment for placed in ledger.segments]) for ledger in self.ledgers])

    def held(self, stages: Iterable[int]) -> Ledger:
        """All that a rank with these stages holds."""
        some = [self.ledgers[index] for index in stages]
        return replace(some[0], segments=tuple(placed for ledger in some for placed in ledger.segments))
