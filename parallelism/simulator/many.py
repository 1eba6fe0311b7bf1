"""Step times of many plans at once, for a search: plans of one shape share a graph, and long steps are cut short."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from parallelism.schedules.orders import Action
from parallelism.simulator.plan import StepPlan
from parallelism.simulator.stage_sums import StageSums, Sums, finish_seconds
from parallelism.simulator.step_ends import Shape, ends_of
from parallelism.simulator.turns import Turn, turns_of

#: settings of a plan that decide, beside its orders and stages, which tasks there are and what they wait for
SHAPES = ("gathers", "reductions", "gathers_ahead", "keeps_after_forward", "reduces_each")
#: rounds of `pp` micro-batches that are worked out; those that are left take as long as the last SETTLED of them
ROUNDS_KEPT, SETTLED = 4, 2


@dataclass(frozen=True)
class Candidate:
    """A plan of a search, whatever its own orders. `orders_of(n)` gives them for n micro-batches: the same object for
    the same n, so that plans of one shape are known by it."""

    plan: StepPlan
    micro_batches: int
    orders_of: Callable[[int], tuple[tuple[Action, ...], ...]]


def step_seconds_of(candidates: Sequence[Candidate]) -> list[float]:
    """Seconds of each candidate's step, in their order.

    Counted: what `program_of` and `run` count, to the last digit for steps of few micro-batches. Steps of more than
    ROUNDS_KEPT rounds of `pp` micro-batches are worked out for fewer: each further round costs what the last of these
    did on average, or what the busiest rank needs for it, if that comes to more. Not counted: queues that slow each
    other down (`Sharing`). A search's best few are to be run whole.
    """
    sums = Sums()
    groups: dict[Hashable, list[int]] = defaultdict(list)
    steps: list[_Step] = []
    sizes = [_sizes(item) for item in candidates]
    for item, cut in zip(candidates, sizes, strict=True):
        plan = item.plan
        stages = [sums.of(stage) for stage in plan.stages]
        shape = tuple([stage.kind for stage in stages]), bool(plan.agree), *[getattr(plan, name) for name in SHAPES]
        for size in cut:
            orders = item.orders_of(size)
            groups[id(orders), shape].append(len(steps))
            steps.append(_Step(plan, orders, stages))
    ends: list[_End] = [_End(0.0, ())] * len(steps)
    turns: dict[int, list[Turn]] = {}
    for places in groups.values():
        some = [steps[place] for place in places]
        orders = some[0].orders
        if id(orders) not in turns:
            turns[id(orders)] = turns_of(orders)
        for place, end in zip(places, _ends(some, turns[id(orders)], sums), strict=True):
            ends[place] = end
    line, found = iter(ends), []
    for item, cut in zip(candidates, sizes, strict=True):
        found.append(next(line).total if len(cut) == 1 else _extended(item, next(line), next(line)))
    return found


@dataclass(frozen=True, slots=True)
class _Step:
    """A plan by orders of its own or shorter ones, and its stages."""

    plan: StepPlan
    orders: tuple[tuple[Action, ...], ...]
    stages: list[StageSums]


def _sizes(item: Candidate) -> tuple[int, ...]:
    """Micro-batches of the steps that are worked out: its own, or where it is long a shorter one and one that is
    shorter still."""
    kept = kept_of(item.micro_batches, len(item.plan.orders))
    return (kept,) if kept == item.micro_batches else (kept, kept - SETTLED * len(item.plan.orders))


def kept_of(micro_batches: int, pp: int) -> int:
    """Micro-batches of a step that are worked out; what is left are whole rounds."""
    return micro_batches if micro_batches < (ROUNDS_KEPT + 1) * pp else ROUNDS_KEPT * pp + micro_batches % pp


def _extended(item: Candidate, long: _End, short: _End) -> float:
    """The step of which two shorter ones are known."""
    pp = len(item.plan.orders)
    times = (item.micro_batches - kept_of(item.micro_batches, pp)) / (SETTLED * pp)
    total = long.total + times * (long.total - short.total)
    for (idle, busy), (_, before) in zip(long.ranks, short.ranks, strict=True):
        total = max(total, idle + busy + times * (busy - before))
    return total


@dataclass(frozen=True, slots=True)
class _End:
    """A step's seconds; of each pipeline rank those before its first and after its last task, and those it is busy."""

    total: float
    ranks: tuple[tuple[float, float], ...]


def _ends(steps: Sequence[_Step], turns: Sequence[Turn], sums: Sums) -> list[_End]:
    """How steps of one shape end."""
    import numpy as np

    first = steps[0]
    shape = Shape(
        replace(first.plan, orders=first.orders), turns, [sums.kinds[stage.kind] for stage in first.stages]
    )  # fmt: skip
    finish = np.array([finish_seconds(step.plan) for step in steps]).T
    found = ends_of(shape, [step.stages for step in steps], finish, np.array([step.plan.agree for step in steps]))
    ranks = np.array([found.idle, found.busy]).T.tolist()
    return [_End(total, tuple(pairs)) for total, pairs in zip(found.total.tolist(), ranks, strict=True)]
