"""From a question to a plan: the search, then the best of it looked at whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite

from memory.assessment import Assessment
from memory.search import Search as MemorySearch
from memory.verdict import SAFE_SHARE, Verdict
from parallelism.simulator.simulation import Simulation
from reports.plan.asked import Asked
from reports.plan.bounds import Bounds
from reports.plan.search import Search, Tally
from reports.plan.space import Space
from reports.plan.timing import Timing
from suite.case import Case
from suite.hardware import DeviceKind
from suite.parse import require

#: most layouts that are simulated whole, for each that is asked for
WHOLE = 3


@dataclass(frozen=True)
class Answer:
    """A layout of a plan."""

    asked: Asked
    simulation: Simulation
    assessment: Assessment

    @property
    def case(self) -> Case:
        """What to launch."""
        return self.simulation.case

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.simulation.step_seconds

    @property
    def weight(self) -> float:
        """What the objective makes of it."""
        return self.asked.weight(self.seconds)

    @property
    def peak_bytes(self) -> int:
        """Of the fullest rank."""
        return self.assessment.peak_bytes

    @property
    def memory_share(self) -> float:
        """Peak over what a rank may use."""
        available = self.assessment.available_bytes
        assert available is not None  # a device without a known memory is refused
        return self.peak_bytes / available


@dataclass(frozen=True)
class Plan:
    """What to launch, best first, and what became of all other layouts."""

    asked: Asked
    answers: tuple[Answer, ...]
    tally: Tally
    floor_seconds: float
    """no layout that was left out can take less"""
    worlds: tuple[int, ...] = ()
    """numbers of GPUs that were tried"""

    @property
    def floor(self) -> float | None:
        """The same, None where no layout was left out."""
        return self.floor_seconds if isfinite(self.floor_seconds) else None


@dataclass(frozen=True)
class Solver:
    """Answers questions about one model on one kind of machine; what one needs serves the next."""

    timing: Timing
    memory: MemorySearch = field(default_factory=MemorySearch)

    def plan(self, asked: Asked, limit: float | None = None) -> Plan:
        """The best layouts of a question, by its objective; fewer where fewer fit. `limit` is the most bytes that one
        may need, by default what the device has.

        Layouts come by what they take at the least. Each is simulated whole, until no other can be among the best, or
        so many were that the rest is left at what it takes at the least.
        """
        search = self.search(asked, limit_bytes(asked) if limit is None else limit)
        best: list[Answer] = []
        for _ in range(WHOLE * asked.best):
            slowest = best[-1].seconds if len(best) == asked.best else inf
            if search.floor_seconds >= slowest or (found := search.next()) is None:
                break
            simulation = self.timing.whole(found.case)
            if simulation.step_seconds >= slowest:
                continue
            assessment = Assessment(self.memory.model(found.case), asked.device)
            if assessment.is_at_least(asked.accept):
                best = sorted([*best, Answer(asked, simulation, assessment)], key=_order)[: asked.best]
        return Plan(asked, tuple(best), search.tally, search.floor_seconds, (asked.gpus,))

    def search(self, asked: Asked, limit: float) -> Search:
        """Of layouts that need at most so many bytes."""
        space = Space(asked)
        return Search(space, Bounds(space, self.timing.prices), limit, self.timing.seconds, self.memory)


def _order(answer: Answer) -> tuple[float, int]:
    return answer.seconds, answer.peak_bytes


def limit_bytes(asked: Asked) -> float:
    """The most that a layout's peak may be: what is there, less the context; four fifths of it where it is to fit."""
    device, share = asked.device, 1 if asked.accept is Verdict.TIGHT else SAFE_SHARE
    total = device.memory_bytes.value
    require(
        total is not None,
        f"cluster.device: {device.name} has no published memory ({device.memory_bytes.source}); `models --devices`"
        " lists those that have",
    )
    assert total is not None
    if device.kind is DeviceKind.CPU:
        return float(total // asked.per_node * share)
    return float((total - (device.context_bytes.value or 0)) * share)
