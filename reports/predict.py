"""Case -> what the formulas say of it: memory and traffic of every rank and time of a step, as a run records it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from memory.caches.model import cache_terms
from memory.estimate import MemoryModel, representative_ranks
from memory.timeline import timeline_of
from parallelism.simulator.serving_time import serving_time
from parallelism.simulator.serving_work import middle_of
from parallelism.simulator.simulators import simulator_of
from parallelism.traffic import estimate_routed
from suite.case import Case
from suite.hardware import device
from suite.parse import SpecError
from suite.passes import ON_RANKS, Pass, on_ranks
from suite.received import RoutedAs, routing_of
from suite.record import Sample, ServingEstimate, TimeEstimate
from suite.store import EstimateRow

if TYPE_CHECKING:
    from suite.hardware.calibration import Calibration


@dataclass(frozen=True)
class Predictor:
    """Predicts cases. `calibration` is of this machine, None where nothing was measured."""

    calibration: Calibration | None = None
    passes: tuple[Pass, ...] = ON_RANKS
    """what is measured, and so what is predicted; of memory alone the sums are kept, neither terms nor timeline"""

    def __call__(self, case: Case, samples: Sequence[Sample] = ()) -> EstimateRow:
        """The row of a case: memory, its timeline and traffic of its ranks, time of its step; of a served case, its
        cache on its ranks and the times of its answers. Where the samples of a run hold a routing, memory and traffic
        are of the routing that each had; the time is of the one that is assumed."""
        if case.serves:
            return EstimateRow(case.case_id, case.to_mapping(), serving=self.serving(case))
        routing, routing_of_traffic = (routing_of(case, samples, heard) for heard in (Pass.MEMORY, Pass.TRAFFIC))
        model = MemoryModel(case, received=routing)
        told = replace(model, received=routing_of_traffic)
        ranks = representative_ranks(case.layout)
        keeps_terms = Pass.MEMORY in self.passes and on_ranks(self.passes) != (Pass.MEMORY,)
        memory = [model.estimate(rank) for rank in ranks if Pass.MEMORY in self.passes]
        traffic = [
            estimate_routed(case, told.ledgers_of_share(rank), rank) for rank in ranks if Pass.TRAFFIC in self.passes
        ]
        return EstimateRow(
            case_id=case.case_id,
            case=case.to_mapping(),
            memory=tuple(memory) if keeps_terms else tuple(found.summed() for found in memory),
            time=self.time(case) if Pass.TRAIN in self.passes else None,
            traffic=tuple(traffic),
            timelines=tuple(timeline_of(model, rank) for rank in ranks if keeps_terms),
            routing=RoutedAs.RECORDED if routing or routing_of_traffic else RoutedAs.ASSUMED,
        )

    def time(self, case: Case) -> TimeEstimate:
        """Time of a step as the simulator has it; without figures, and with the reason, where it has none."""
        device(case.cluster.device)  # one that is not known is refused, not left out
        try:
            return simulator_of(case, self.calibration)(case).estimate
        except SpecError as error:
            return TimeEstimate(None, None, None, None, None, basis=str(error))

    def serving(self, case: Case) -> ServingEstimate:
        """A served case's cache, and its times at the middle token of its answers; without times, and with the reason,
        where there are none."""
        device(case.cluster.device)
        terms = tuple(term for rank in representative_ranks(case.layout) for term in cache_terms(case, rank))
        middle = middle_of(case)
        try:
            time = serving_time(middle, cache_terms(middle), self.calibration)
        except SpecError as error:
            return ServingEstimate(terms, basis=str(error))
        return ServingEstimate(terms, time.prefill_seconds, time.decode_seconds, time.basis)
