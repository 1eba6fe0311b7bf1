"""A question of several numbers of GPUs: the best layouts of all of them, by what the question wants less of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from reports.plan.asked import Asked
from reports.plan.misses import why_nothing
from reports.plan.solve import Plan, Solver
from suite.parse import SpecError


def worlds_of(asked: Asked, max_gpus: int | None) -> tuple[Asked, ...]:
    """The question itself; where fewer GPUs may be used, also of half as many, and so on to one."""
    return tuple(halved(asked)) if max_gpus is not None else (asked,)


def halved(asked: Asked) -> Iterator[Asked]:
    """The question, and of half as many machines, and in the end of half a machine's devices, as long as they halve."""
    while True:
        yield asked
        nodes, per_node = asked.nodes, asked.per_node
        if nodes > 1 and nodes % 2 == 0:
            nodes //= 2
        elif nodes == 1 and per_node % 2 == 0:
            per_node //= 2
        else:
            return
        asked = asked.on(nodes, per_node)


def best_of(solver: Solver, worlds: Sequence[Asked]) -> tuple[Plan, ...]:
    """A plan for each number of GPUs that has one, the one with the best answer first. SpecError where nothing fits any
    of them, with the layout that comes nearest."""
    plans = [plan for asked in worlds if (plan := _tried(solver, asked, len(worlds) > 1)) and plan.answers]
    if not plans:
        raise SpecError(why_nothing(solver, worlds[0]))
    return tuple(sorted(plans, key=lambda plan: plan.answers[0].weight))


def merged(plans: Sequence[Plan]) -> Plan:
    """The best answers of all, as one plan; what became of other layouts is said of the first's number of GPUs."""
    first = plans[0]
    answers = sorted((answer for plan in plans for answer in plan.answers), key=lambda answer: answer.weight)
    worlds, best = tuple(sorted({plan.asked.gpus for plan in plans})), first.asked.best
    unshown = [answer.seconds for answer in answers[best:] if answer.asked.gpus == first.asked.gpus]
    floor = min([first.floor_seconds, *unshown])
    return replace(first, answers=tuple(answers[:best]), floor_seconds=floor, worlds=worlds)


def _tried(solver: Solver, asked: Asked, is_one_of_many: bool) -> Plan | None:
    """The plan; of several numbers of GPUs one that no layout is legal for is passed over."""
    try:
        return solver.plan(asked)
    except SpecError:
        if is_one_of_many:
            return None
        raise
