"""Fronts: how much slower a step is with less memory, and with fewer GPUs. Every point is the best of a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from reports.plan.asked import Asked
from reports.plan.solve import Answer, Solver, limit_bytes
from reports.plan.worlds import halved
from suite.parse import SpecError

#: shares of what counts as fitting that a layout may need
SHARES = (0.8, 0.6, 0.4, 0.2)


@dataclass(frozen=True)
class Fronts:
    """Points that no other is better than on both sides."""

    memory: tuple[Answer, ...]
    """ascending by seconds, descending by peak"""
    gpus: tuple[Answer, ...]
    """descending by GPUs"""


def fronts_of(solver: Solver, asked: Asked, best: Answer) -> Fronts:
    """Both fronts, from the best answer on."""
    return Fronts(
        unbeaten([best, *_leaner(solver, asked)], lambda answer: float(answer.peak_bytes)),
        unbeaten([best, *_fewer(solver, asked)], lambda answer: float(answer.asked.gpus)),
    )


def unbeaten(answers: Sequence[Answer], other: Callable[[Answer], float]) -> tuple[Answer, ...]:
    """Those that none has both less time and less of the other than."""
    kept: list[Answer] = []
    for answer in sorted(answers, key=lambda each: (each.seconds, other(each))):
        if not kept or other(answer) < other(kept[-1]):
            kept.append(answer)
    return tuple(kept)


def _leaner(solver: Solver, asked: Asked) -> Iterator[Answer]:
    """The best within each share of the memory."""
    limit = limit_bytes(asked)
    for share in SHARES:
        found = solver.plan(replace(asked, best=1), limit * share).answers
        if not found:
            return
        yield from found


def _fewer(solver: Solver, asked: Asked) -> Iterator[Answer]:
    """The best of each half as many."""
    for fewer in list(halved(asked))[1:]:
        try:
            found = solver.plan(replace(fewer, best=1)).answers
        except SpecError:
            return
        if not found:
            return
        yield from found
