"""From a question to a plan: the search, then the best of it looked at whole."""

from __future__ import annotations

import gc
from bisect import insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from math import isfinite
from typing import NamedTuple

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

#: share by which a layout may take less than it was thought to from layouts like it; most layouts that are simulated
LEEWAY, MOST_SIMULATED = 0.006, 100


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

        Layouts come in the order of about what they take. Each is simulated whole, until none that is left is likely
        to be among the best; those are then looked at for what torch's allocator makes of them, best first.
        """
        with _no_collection():
            return self._plan(asked, self.search(asked, limit_bytes(asked) if limit is None else limit))

    def _plan(self, asked: Asked, search: Search) -> Plan:
        simulated: list[_Simulated] = []
        answers: list[Answer] = []
        for number in count():
            wanted = asked.best - len(answers)
            if wanted and _may_miss(search, simulated, wanted, number) and (found := search.next()) is not None:
                simulation = self.timing.whole(found.case)
                search.learn(found, simulation.step_seconds)
                insort(simulated, _Simulated(simulation.step_seconds, found.peak_bytes, number, simulation))
            elif wanted and simulated:
                simulation = simulated.pop(0).simulation
                assessment = Assessment(self.memory.model(simulation.case), asked.device)
                if assessment.is_at_least(asked.accept):
                    answers.append(Answer(asked, simulation, assessment))
            else:
                break
        answers.sort(key=lambda answer: (answer.seconds, answer.peak_bytes))
        floor = min([search.floor_seconds, *(each.seconds for each in simulated)])
        return Plan(asked, tuple(answers), search.tally, floor, (asked.gpus,))

    def search(self, asked: Asked, limit: float) -> Search:
        """Of layouts that need at most so many bytes."""
        space = Space(asked)
        return Search(space, Bounds(space, self.timing.prices), limit, self.timing.seconds, self.memory)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without looks for garbage that refers to itself: a search makes none, and all that it keeps would be gone
    through again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Simulated(NamedTuple):
    """A layout whose peak fits, in order of its seconds."""

    seconds: float
    peak_bytes: int
    number: int
    simulation: Simulation


def _may_miss(search: Search, simulated: Sequence[_Simulated], wanted: int, number: int) -> bool:
    """Is one of the best that are wanted perhaps among those that were not simulated?"""
    if len(simulated) < wanted:
        return True
    return number < MOST_SIMULATED and search.next_seconds < simulated[wanted - 1].seconds * (1 + LEEWAY)


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
