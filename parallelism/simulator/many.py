"""Step times of many plans at once, for a search: plans of one shape share a graph, and long steps are cut short."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from parallelism.schedules.orders import Action
from parallelism.simulator.engine import Graph, followers_of
from parallelism.simulator.folding import Folder, distinct, pattern
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
    folder = Folder()
    groups: dict[Hashable, list[int]] = defaultdict(list)
    plans: list[StepPlan] = []
    sizes = [_sizes(item) for item in candidates]
    for item, cut in zip(candidates, sizes, strict=True):
        plan, shape = folder.plan(item.plan)
        for size in cut:
            orders = plan.orders if size == item.micro_batches else item.orders_of(size)
            groups[id(orders), shape].append(len(plans))
            plans.append(plan if orders is plan.orders else replace(plan, orders=orders))
    ends: list[_End] = [_End(0.0, ())] * len(plans)
    for places in groups.values():
        for place, end in zip(places, _ends([plans[place] for place in places]), strict=True):
            ends[place] = end
    line, found = iter(ends), []
    for item, cut in zip(candidates, sizes, strict=True):
        found.append(next(line).total if len(cut) == 1 else _extended(item, next(line), next(line)))
    return found


def _sizes(item: Candidate) -> tuple[int, ...]:
    """Micro-batches of the steps that are worked out: its own, or where it is long a shorter one and one that is
    shorter still."""
    kept = _kept(item)
    return (kept,) if kept == item.micro_batches else (kept, kept - SETTLED * len(item.plan.orders))


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
    known: dict[tuple[int, ...], StagePlan] = {}
    stages = []
    for place in range(len(plans[0].stages)):
        own = [plan.stages[place] for plan in plans]
        key = tuple(map(id, own))
        if key not in known:
            known[key] = _stage(own)
        stages.append(known[key])
    finish = tuple(_cost([plan.finish[place] for plan in plans]) for place in range(len(plans[0].finish)))
    agree = cast(float, Lanes.of([plan.agree for plan in plans]))
    return replace(plans[0], stages=tuple(stages), finish=finish, agree=agree)


def _stage(stages: Sequence[StagePlan]) -> StagePlan:
    columns = zip(*(distinct(stage) for stage in stages), strict=True)
    units = [_unit(column) for column in columns]
    send = cast(float, Lanes.of([stage.send for stage in stages]))
    return StagePlan(tuple(units[index] for index in pattern(stages[0])), send)


def _unit(units: Sequence[Unit]) -> Unit:
    """Of units that are folded."""
    costs = (_cost([getattr(unit, name) for unit in units]) for name in ("forward", "inputs", "weights"))
    gather, reduce = (cast(float, Lanes.of([getattr(unit, name) for unit in units])) for name in ("gather", "reduce"))
    return Unit(units[0].name, *costs, gather=gather, reduce=reduce, is_kept=units[0].is_kept)


def _cost(costs: Sequence[Cost]) -> Cost:
    compute, host = (Lanes.of([getattr(cost, name) for cost in costs]) for name in ("compute", "host"))
    return Cost(cast(float, compute), cast(float, host))
