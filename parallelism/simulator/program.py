"""A step's plan as tasks on queues: each pipeline rank computes, issues, gathers, reduces and sends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

from parallelism.schedules.orders import Action, Pass
from parallelism.simulator.engine import Cores, Graph, Interference, Sharing
from parallelism.simulator.plan import NOTHING, Cost, Issue, Part, StepPlan, Unit


class Stream(IntEnum):
    """A pipeline rank's queues."""

    COMPUTE = 0
    HOST = 1
    GATHER = 2
    REDUCE = 3
    SEND = 4


STREAMS = len(Stream)


@dataclass(frozen=True, slots=True)
class Label:
    """What a task is: for the timeline, the parts of a step, and a message."""

    part: Part
    place: int
    stream: Stream
    name: str = ""
    action: Action | None = None

    def __str__(self) -> str:
        return f"{self.name or self.part} on pipeline rank {self.place}" + (f" in {self.action}" if self.action else "")


@dataclass
class Program:
    """A graph with its sharing, and what is needed to read its times."""

    graph: Graph
    sharing: tuple[Sharing, ...]
    places: int

    @cached_property
    def tasks_of(self) -> dict[int, list[int]]:
        """The tasks of each queue, in its order."""
        found: dict[int, list[int]] = {}
        for task, queue in enumerate(self.graph.queue):
            found.setdefault(queue, []).append(task)
        return found


def program_of(plan: StepPlan) -> Program:
    """All tasks of a step."""
    graph = Graph()
    ranks = [_Rank(plan, graph, place) for place in range(len(plan.orders))]
    for rank in ranks:
        rank.run()
    _connect(plan, graph, ranks)
    _finish(plan, graph, ranks)
    return Program(graph, _sharing(plan), len(ranks))


@dataclass
class _Rank:
    """Writes one pipeline rank's tasks."""

    plan: StepPlan
    graph: Graph
    place: int
    first: dict[Action, int] = field(default_factory=dict)  # an action's first task on the device
    last: dict[Action, int] = field(default_factory=dict)
    sums: dict[tuple[int, Pass], tuple[Cost, Cost]] = field(default_factory=dict)  # of all a stage's units: rerun, own
    gathered: set[tuple[int, int]] = field(default_factory=set)  # (stage, unit) whose parameters are whole
    recent: list[int] = field(default_factory=list)  # last task of each unit that computed, in order
    issued: int | None = None  # the last task of the host
    open: list[int] = field(default_factory=list)  # what the update waits for
    put_off: list[tuple[Unit, Action]] = field(default_factory=list)  # reductions that wait for the end

    def run(self) -> None:
        """Every action of its order."""
        order = self.plan.orders[self.place]
        left = reducing(order, self.plan.reduces_each)
        if self.plan.gathers is Issue.AT_END:
            self._gather_first(order)
        for action, reduces in zip(order, left, strict=True):
            self._act(action, reduces)
        for unit, action in self.put_off:
            self.open.append(self._task(Stream.COMPUTE, Part.REDUCTION, unit.reduce, action, unit.name))

    def _act(self, action: Action, reduces: bool) -> None:
        stage = self.plan.stages[action.stage]
        exploded = (stage.is_sharded and self.plan.gathers is not Issue.AT_END) or reduces
        places = range(len(stage.units)) if action.kind is Pass.FORWARD else reversed(range(len(stage.units)))
        if exploded:
            self._unit_by_unit(action, list(places), reduces)
        else:
            self._whole(action)

    def _whole(self, action: Action) -> None:
        """One run of all the units: nothing is gathered or reduced among them."""
        key = (action.stage, action.kind)
        if key not in self.sums:
            units = self.plan.stages[action.stage].units
            rerun = sum((unit.rerun for unit in units), NOTHING) if _reruns(action) else NOTHING
            self.sums[key] = rerun, sum((_cost(unit, action.kind) for unit in units), NOTHING)
        self._compute(action, "", *self.sums[key])

    def _unit_by_unit(self, action: Action, places: list[int], reduces: bool) -> None:
        stage, ahead = self.plan.stages[action.stage], self.plan.gathers_ahead[action.kind is not Pass.FORWARD]
        for index in places:
            unit = stage.units[index]
            waits = []
            if unit.gather and (action.stage, index) not in self.gathered:
                waits = [self._gather(unit, action, ahead)]
            self._settle(action, index, unit)
            rerun = unit.rerun if _reruns(action) else NOTHING
            done = self._compute(action, unit.name, rerun, _cost(unit, action.kind), waits)
            if reduces and unit.reduce:
                self._reduce(unit, action, done)

    def _settle(self, action: Action, index: int, unit: Unit) -> None:
        """Which parameters stay whole after this pass."""
        is_forward = action.kind is Pass.FORWARD
        whole = unit.is_kept or self.plan.keeps_after_forward if is_forward else self._is_pipelined
        (self.gathered.add if whole else self.gathered.discard)((action.stage, index))

    @property
    def _is_pipelined(self) -> bool:
        """torch's pipelines let go of parameters after a stage's last backward pass alone."""
        return len(self.plan.orders) > 1

    def _gather(self, unit: Unit, action: Action, ahead: int) -> int:
        if self.plan.gathers is Issue.BLOCKING and not ahead:
            return self._task(Stream.COMPUTE, Part.GATHER, unit.gather, action, unit.name)
        after = self.recent[-1 - ahead : len(self.recent) - ahead] if len(self.recent) > ahead else []
        return self._task(Stream.GATHER, Part.GATHER, unit.gather, action, unit.name, after)

    def _gather_first(self, order: Iterable[Action]) -> None:
        """All parameters before anything else, as a distributed optimizer does at the end of the step before."""
        for stage in dict.fromkeys(action.stage for action in order):
            for unit in self.plan.stages[stage].units:
                if unit.gather:
                    self._task(Stream.COMPUTE, Part.GATHER, unit.gather, None, unit.name)

    def _reduce(self, unit: Unit, action: Action, done: int) -> None:
        if self.plan.reductions is Issue.AT_END:
            self.put_off.append((unit, action))
        elif self.plan.reductions is Issue.BLOCKING:
            self._task(Stream.COMPUTE, Part.REDUCTION, unit.reduce, action, unit.name)
        else:
            self.open.append(self._task(Stream.REDUCE, Part.REDUCTION, unit.reduce, action, unit.name, [done]))

    def _compute(self, action: Action, name: str, rerun: Cost, own: Cost, waits: Iterable[int] = ()) -> int:
        """The device's tasks of a run of operators, and the host's; the last of the device's."""
        before = [] if self.issued is None else [self.issued]
        if rerun.host or own.host:
            self.issued = self._task(Stream.HOST, Part.HOST, rerun.host + own.host, action, name)
        after, done = [*waits, *before], -1
        pieces = [(Part.RECOMPUTE, rerun), (Part.COMPUTE, own)] if rerun.seconds else [(Part.COMPUTE, own)]
        for part, cost in pieces:
            done = self._task(Stream.COMPUTE, part, cost.compute, action, name, after)
            self.first.setdefault(action, done)
            after = []
            for kind, seconds in cost.blocking:
                if seconds:
                    done = self._task(Stream.COMPUTE, kind, seconds, action, name)
        self.recent.append(done)
        self.last[action] = done
        return done

    def _task(
        self,
        stream: Stream,
        part: Part,
        seconds: float,
        action: Action | None,
        name: str = "",
        after: Iterable[int] = (),
    ) -> int:
        label = Label(part, self.place, stream, name, action)
        return self.graph.add(self.place * STREAMS + stream, seconds, tuple(after), label)


def _connect(plan: StepPlan, graph: Graph, ranks: list[_Rank]) -> None:
    """Activations to the next stage, gradients to the one before; within a rank nothing is sent. What a rank sends
    goes out in the order in which it is made."""
    places, last_stage = plan.place_of_stage, len(plan.stages) - 1
    crossing: list[tuple[int, Action, Action]] = []
    for rank in ranks:
        for action in plan.orders[rank.place]:
            source = source_of(action, last_stage)
            if source is None:
                continue
            made_by = ranks[places[source.stage]].last
            if source not in made_by and source.kind is Pass.INPUT:
                source = Action(source.stage, Pass.BACKWARD, source.micro_batch)  # that stage does not split it
            if places[source.stage] == rank.place:
                graph.wait(rank.first[action], made_by[source])
            else:
                crossing.append((made_by[source], source, action))
    for made, source, action in sorted(crossing, key=lambda item: item[0]):
        sender, edge = places[source.stage], min(source.stage, action.stage)
        label = Label(Part.PIPELINE, sender, Stream.SEND, "send", source)
        sent = graph.add(sender * STREAMS + Stream.SEND, plan.stages[edge].send, (made,), label)
        graph.wait(ranks[places[action.stage]].first[action], sent)


def source_of(action: Action, last_stage: int) -> Action | None:
    """The pass on another stage that an action waits for."""
    if action.kind is Pass.FORWARD:
        return Action(action.stage - 1, Pass.FORWARD, action.micro_batch) if action.stage else None
    if action.kind is Pass.WEIGHT or action.stage == last_stage:
        return None
    return Action(action.stage + 1, Pass.INPUT, action.micro_batch)


def _finish(plan: StepPlan, graph: Graph, ranks: list[_Rank]) -> None:
    """Once everything is reduced: what the ranks agree on, then each rank's update."""
    ends = [[*rank.open, *rank.recent[-1:], *([] if rank.issued is None else [rank.issued])] for rank in ranks]
    everyone = [task for end in ends for task in end]
    for rank, cost, own in zip(ranks, plan.finish, ends, strict=True):
        tasks = [(Part.OPTIMIZER, max(cost.compute, cost.host)), *cost.blocking]
        if plan.agree:
            tasks.insert(0, (Part.NORM, plan.agree))
        after = everyone if plan.agree else own
        for part, seconds in tasks:
            label = Label(part, rank.place, Stream.COMPUTE, "update")
            graph.add(rank.place * STREAMS + Stream.COMPUTE, seconds, after, label)
            after = []


def _sharing(plan: StepPlan) -> tuple[Sharing, ...]:
    places = range(len(plan.orders))
    if plan.cores is not None:
        cores, demand = plan.cores
        queues = tuple(place * STREAMS + Stream.COMPUTE for place in places)
        return (Cores(queues, cores / plan.ranks_a_place, demand),)
    if plan.slowdown == 1 and not (plan.gathers is plan.reductions is Issue.STREAMS):
        return ()
    beside = (Stream.GATHER, Stream.REDUCE)
    return tuple(
        Interference(place * STREAMS, tuple(place * STREAMS + stream for stream in beside), plan.slowdown)
        for place in places
    )


def _cost(unit: Unit, kind: Pass) -> Cost:
    match kind:
        case Pass.FORWARD:
            return unit.forward
        case Pass.INPUT:
            return unit.inputs + unit.apart[0]
        case Pass.WEIGHT:
            return unit.weights + unit.apart[1]
        case Pass.BACKWARD:
            return unit.backward


def _reruns(action: Action) -> bool:
    return action.kind in (Pass.BACKWARD, Pass.INPUT)


def reducing(order: tuple[Action, ...], each: bool) -> list[bool]:
    """Which actions a stage's gradients are reduced in: those that make them, the last one of each stage or all."""
    makes = [action.kind in (Pass.BACKWARD, Pass.WEIGHT) for action in order]
    if each:
        return makes
    final = {action.stage: place for place, action in enumerate(order) if makes[place]}
    return [place == final.get(action.stage) for place, action in enumerate(order)]
