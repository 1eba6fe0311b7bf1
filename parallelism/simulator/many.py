"""Step times of many plans at once, for a search: plans of one shape share a graph, and long steps are cut short."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from parallelism.schedules.orders import Action
from parallelism.simulator.engine import Graph, followers_of
from parallelism.simulator.lanes import Lanes, later
from parallelism.simulator.plan import Cost, StagePlan, StepPlan, Unit
from parallelism.simulator.program import STREAMS, Stream, program_of

#: rounds of `pp` micro-batches that are worked out; those that are left take as long as the last SETTLED of them
ROUNDS_KEPT, SETTLED = 4, 2


@dataclass(frozen=True)
class Candidate:
    """A plan of a search. `orders_of(n)` gives its orders for n micro-batches: the same object for the same n, so that
    plans of one shape are known by it."""

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
    plans = [plan for item in candidates for plan in (item.plan, *_cut(item))[-2:]]
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for place, plan in enumerate(plans):
        groups[_shape(plan)].append(place)
    ends: list[_End] = [_End(0.0, ())] * len(plans)
    for places in groups.values():
        for place, end in zip(places, _ends([plans[place] for place in places]), strict=True):
            ends[place] = end
    line, found = iter(ends), []
    for item in candidates:
        cut = _cut(item)
        found.append(_extended(item, next(line), next(line)) if cut else next(line).total)
    return found


def _cut(item: Candidate) -> tuple[StepPlan, ...]:
    """A shorter step of the same kind and one that is shorter still, if the step is long."""
    kept = _kept(item)
    if kept == item.micro_batches:
        return ()
    sizes = (kept, kept - SETTLED * len(item.plan.orders))
    return tuple(replace(item.plan, orders=item.orders_of(size)) for size in sizes)


def _kept(item: Candidate) -> int:
    """Micro-batches that are worked out; what is left are whole rounds."""
    pp, count = len(item.plan.orders), item.micro_batches
    return count if count < (ROUNDS_KEPT + 1) * pp else ROUNDS_KEPT * pp + count % pp


def _extended(item: Candidate, long: _End, short: _End) -> float:
    """The step of which two shorter ones are known."""
    times = (item.micro_batches - _kept(item)) / (SETTLED * len(item.plan.orders))
    total = long.total + times * (long.total - short.total)
    for (idle, busy), (_, before) in zip(long.ranks, short.ranks, strict=True):
        total = max(total, idle + busy + times * (busy - before))
    return total


@dataclass(frozen=True, slots=True)
class _End:
    """A step's seconds; of each pipeline rank those before its first and after its last task, and those it is busy."""

    total: float
    ranks: tuple[tuple[float, float], ...]


def _shape(plan: StepPlan) -> Hashable:
    """All that decides which tasks there are and what they wait for."""
    stages = tuple((_pattern(stage), tuple(map(_kinds, _distinct(stage)))) for stage in plan.stages)
    rest = (plan.gathers, plan.reductions, plan.gathers_ahead, plan.keeps_after_forward, plan.reduces_each)
    return id(plan.orders), stages, bool(plan.agree), tuple(map(_blocking, plan.finish)), rest


def _distinct(stage: StagePlan) -> list[Unit]:
    return list({id(unit): unit for unit in stage.units}.values())


def _pattern(stage: StagePlan) -> tuple[int, ...]:
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(id(unit), len(numbers)) for unit in stage.units)


def _kinds(unit: Unit) -> Hashable:
    """Which of its times are there."""
    costs = (unit.forward, unit.inputs, unit.weights, unit.rerun, *unit.apart)
    flags = (bool(unit.gather), bool(unit.reduce), unit.is_kept)
    return (*flags, *((bool(cost.compute), bool(cost.host), _blocking(cost)) for cost in costs))


def _blocking(cost: Cost) -> Hashable:
    return tuple(part for part, _ in cost.blocking)


def _ends(plans: Sequence[StepPlan]) -> list[_End]:
    """How the steps of plans of one shape end."""
    graph = program_of(_stacked(plans) if len(plans) > 1 else plans[0]).graph
    total, ranks = _longest(graph, len(plans[0].orders))
    lanes = range(len(plans))
    return [_End(_lane(total, i), tuple((_lane(idle, i), _lane(busy, i)) for idle, busy in ranks)) for i in lanes]


def _lane(number: Any, index: int) -> float:
    return float(number.values[index]) if isinstance(number, Lanes) else number


def _longest(graph: Graph, places: int) -> tuple[Any, list[tuple[Any, Any]]]:
    """As the engine's longest path, for lanes; and each place's idle ends and busy time."""
    followers, waits = followers_of(graph)
    start: list[Any] = [0.0] * len(graph)
    ready = [task for task, count in enumerate(waits) if not count]
    first: list[Any] = [None] * places
    last: list[Any] = [0.0] * places
    busy: list[Any] = [0.0] * places
    total: Any = 0.0
    while ready:
        task = ready.pop()
        end = start[task] + graph.seconds[task]
        place, stream = divmod(graph.queue[task], STREAMS)
        if stream == Stream.COMPUTE:
            first[place] = start[task] if first[place] is None else first[place]
            last[place], busy[place] = end, busy[place] + graph.seconds[task]
        if not followers[task]:
            total = later(total, end)
        for other in followers[task]:
            start[other] = later(start[other], end)
            waits[other] -= 1
            if not waits[other]:
                ready.append(other)
    return total, [(total + last[place] * -1 + first[place], busy[place]) for place in range(places)]


def _stacked(plans: Sequence[StepPlan]) -> StepPlan:
    """One plan whose times are lanes."""
    first = plans[0]
    stages = []
    for place, stage in enumerate(first.stages):
        own = [_distinct(plan.stages[place]) for plan in plans]
        units = [_unit([units[index] for units in own]) for index in range(len(own[0]))]
        send = Lanes.of([plan.stages[place].send for plan in plans])
        stages.append(StagePlan(tuple(units[index] for index in _pattern(stage)), cast(float, send)))
    finish = tuple(_cost([plan.finish[place] for plan in plans]) for place in range(len(first.finish)))
    agree = cast(float, Lanes.of([plan.agree for plan in plans]))
    return _quietly(first, tuple(stages), finish, agree)


def _quietly(first: StepPlan, stages: tuple[StagePlan, ...], finish: tuple[Cost, ...], agree: float) -> StepPlan:
    return replace(first, stages=stages, finish=finish, agree=agree, slowdown=1.0, cores=None)


def _unit(units: Sequence[Unit]) -> Unit:
    first = units[0]
    return Unit(
        first.name,
        _cost([unit.forward for unit in units]),
        _cost([unit.inputs for unit in units]),
        _cost([unit.weights for unit in units]),
        _cost([unit.rerun for unit in units]),
        cast(float, Lanes.of([unit.gather for unit in units])),
        cast(float, Lanes.of([unit.reduce for unit in units])),
        first.is_kept,
        (_cost([unit.apart[0] for unit in units]), _cost([unit.apart[1] for unit in units])),
    )


def _cost(costs: Sequence[Cost]) -> Cost:
    blocking = tuple(
        (part, cast(float, Lanes.of([cost.blocking[place][1] for cost in costs])))
        for place, (part, _) in enumerate(costs[0].blocking)
    )
    compute, host = (Lanes.of([getattr(cost, name) for cost in costs]) for name in ("compute", "host"))
    return Cost(cast(float, compute), cast(float, host), blocking)
