"""How long a step time takes to work out: alone, and in a search over layouts. Processor seconds; nothing is trained.

Alone: a case of its own in a warm process, with nothing kept from other cases; the median over different cases; and the
same case simulated event by event, with its timeline. In a search: layouts of llama3-70b on 512 GPUs, all handed to one
StepSearch that begins empty. The cases are built before the clock starts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from memory.speed import evenly, search_cases
from parallelism.simulator.on_cluster import cluster_simulator
from parallelism.simulator.search import StepSearch
from suite.case import Case
from suite.layout import Layout

WORLDS, CONTEXTS = (512,), (1, 2)
SEARCHED = 10_000
ALONE, SIMULATED = 40, 3  # cases of each kind of layout


@dataclass(frozen=True)
class StepSpeed:
    """Processor seconds of a step time."""

    alone: dict[str, float]  # median by kind of layout
    simulated: dict[str, float]  # the same, event by event
    layouts: int
    amortised: float  # a layout of the search


def lines(speed: StepSpeed) -> list[str]:
    """The figures for a reader."""
    alone, simulated = (
        ", ".join(f"{kind} {seconds * 1e3:.{digits}f}" for kind, seconds in found.items())
        for found, digits in ((speed.alone, 2), (speed.simulated, 0))
    )
    return [
        f"step time alone, ms: {alone}",
        f"step simulated with its timeline, ms: {simulated}",
        f"step time in a search of {speed.layouts:,} layouts, ms a layout: {speed.amortised * 1e3:.3f}",
    ]


def measure(searched: int = SEARCHED, alone: int = ALONE, simulated: int = SIMULATED) -> StepSpeed:
    """Time all three."""
    everything = list(search_cases(WORLDS, CONTEXTS))
    cases = evenly(everything, searched)
    kinds: dict[str, list[Case]] = {}
    for case in cases:
        kinds.setdefault(_kind(case.layout), []).append(case)
    simulator = cluster_simulator()
    by_kind = {kind: evenly(some, alone) for kind, some in sorted(kinds.items())}
    took = _seconds(lambda: StepSearch().seconds(cases))
    return StepSpeed(
        alone={kind: _median(some, lambda case: StepSearch().seconds([case])) for kind, some in by_kind.items()},
        simulated={kind: _median(evenly(some, simulated), simulator) for kind, some in by_kind.items()},
        layouts=len(cases),
        amortised=took / len(cases),
    )


def _kind(layout: Layout) -> str:
    """What tells step times apart by what they cost."""
    return "+".join([*(["pp"] if layout.pp > 1 else []), "fsdp" if layout.fsdp > 1 else "dp"])


def _median(cases: list[Case], work: Callable[[Case], object]) -> float:
    return statistics.median(_seconds(lambda case=case: work(case)) for case in cases)  # type: ignore[misc]


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
