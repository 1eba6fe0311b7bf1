"""What each stage of a pipeline holds, and which stages are alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from parallelism.schedules.ledgers import ledger_of_stages
from parallelism.schedules.stages import Stage, stages_of
from suite.case import Case
from suite.operators import Ledger, Segment


@dataclass(frozen=True, eq=False)
class StageLedgers:
    """A pipeline's stages and the ledger of each, parts of one model's."""

    stages: tuple[Stage, ...]
    ledgers: tuple[Ledger, ...]

    @classmethod
    def of(cls, case: Case, ledger: Ledger) -> StageLedgers:
        """Of the whole model's ledger; without a pipeline it is the only stage's."""
        stages = stages_of(case)
        if case.layout.pp == 1:
            return cls(stages, (ledger,))
        return cls(stages, tuple(ledger_of_stages(case, ledger, (stage,)) for stage in stages))

    @cached_property
    def kinds(self) -> tuple[tuple[Segment, ...], ...]:
        """Of each stage: its segments, the same object for stages that hold the same."""
        known: dict[tuple[Segment, ...], tuple[Segment, ...]] = {}
        kinds = (tuple([placed.segment for placed in ledger.segments]) for ledger in self.ledgers)
        return tuple(known.setdefault(kind, kind) for kind in kinds)

    def held(self, stages: Iterable[int]) -> Ledger:
        """All that a rank with these stages holds."""
        some = [self.ledgers[index] for index in stages]
        return replace(some[0], segments=tuple(placed for ledger in some for placed in ledger.segments))
