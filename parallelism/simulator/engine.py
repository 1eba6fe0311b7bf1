"""The event engine: tasks on queues, with dependencies; queues that share something slow each other down."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from suite.parse import require


class Sharing(Protocol):
    """Queues that share something. `speeds` says how fast each busy one works: 1 is its speed alone."""

    @property
    def queues(self) -> tuple[int, ...]:
        """The queues it is about; no queue belongs to two."""
        ...

    def speeds(self, busy: Sequence[int]) -> Sequence[float]:
        """The speed of each busy queue, in their order; all above 0."""
        ...


@dataclass(frozen=True, slots=True)
class Cores:
    """Processes that share a machine's cores fairly: each queue can use `demand` of them, all together `cores`."""

    queues: tuple[int, ...]
    cores: float
    demand: float = 1.0

    def speeds(self, busy: Sequence[int]) -> Sequence[float]:
        """Everyone at full speed while there are cores enough, else an equal part."""
        return [min(1.0, self.cores / (len(busy) * self.demand))] * len(busy)


@dataclass(frozen=True, slots=True)
class Interference:
    """A device whose kernels slow down while its own communication runs beside them (it takes SMs and bandwidth), and
    whose communication queues share one link."""

    compute: int
    others: tuple[int, ...]
    slowdown: float
    """time of compute under communication over its time alone, at least 1"""

    @property
    def queues(self) -> tuple[int, ...]:
        """The compute queue first."""
        return (self.compute, *self.others)

    def speeds(self, busy: Sequence[int]) -> Sequence[float]:
        """Compute pays for company, and communication shares its link evenly."""
        talking = len(busy) - (self.compute in busy)
        compute = 1 / self.slowdown if talking else 1.0
        return [compute if queue == self.compute else 1 / talking for queue in busy]


@dataclass
class Graph:
    """Tasks in the order in which their queues take them. A task starts when its queue is free and what it is after is
    done."""

    queue: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    after: list[tuple[int, ...]] = field(default_factory=list)
    label: list[object] = field(default_factory=list)
    """what it is, for those who read the timeline"""

    def add(self, queue: int, seconds: float, after: Sequence[int] = (), label: object = None) -> int:
        """One more task at the end of a queue; its number. It may wait for tasks that come later: see `wait`."""
        self.queue.append(queue)
        self.seconds.append(seconds)
        self.after.append(tuple(after))
        self.label.append(label)
        return len(self.queue) - 1

    def wait(self, task: int, *others: int) -> None:
        """Let a task wait for others too."""
        self.after[task] += others

    def __len__(self) -> int:
        return len(self.queue)


@dataclass(frozen=True)
class Times:
    """When each task of a graph started and ended, in seconds from the start of the step."""

    start: list[float]
    end: list[float]

    @property
    def total(self) -> float:
        """The end of the last one; 0 with no tasks."""
        return max(self.end, default=0.0)


class Deadlock(ValueError):
    """Tasks that wait for each other; one line names the first of them."""


def run(graph: Graph, sharing: Sequence[Sharing] = ()) -> Times:
    """When every task starts and ends. The same graph gives the same times, whatever the order of equal events.

    Without sharing: the longest path. With it, seconds are those that a task needs alone, and it advances at the speed
    that its queue has from one event to the next. Raises Deadlock, and SpecError for times that are negative.
    """
    require(min(graph.seconds, default=0.0) >= 0, f"seconds: a task of {min(graph.seconds, default=0.0)} s")
    return _shared(graph, sharing) if sharing else _alone(graph)


def followers_of(graph: Graph) -> tuple[list[list[int]], list[int]]:
    """Who waits for each task, its queue's next among them; and for how many tasks each waits."""
    followers: list[list[int]] = [[] for _ in range(len(graph))]
    waits = [0] * len(graph)
    last: dict[int, int] = {}
    for task, queue in enumerate(graph.queue):
        before = (*graph.after[task], last[queue]) if queue in last else graph.after[task]
        waits[task] = len(before)
        for other in before:
            followers[other].append(task)
        last[queue] = task
    return followers, waits


def _alone(graph: Graph) -> Times:
    """Longest path: every task as soon as what it waits for has ended."""
    followers, waits = followers_of(graph)
    start, end = [0.0] * len(graph), [0.0] * len(graph)
    ready = [task for task, count in enumerate(waits) if not count]
    seconds, done = graph.seconds, 0
    while ready:
        task = ready.pop()
        done += 1
        at = end[task] = start[task] + seconds[task]
        for other in followers[task]:
            if at > start[other]:
                start[other] = at
            waits[other] -= 1
            if not waits[other]:
                ready.append(other)
    _require_all(graph, waits, done)
    return Times(start, end)


def _shared(graph: Graph, sharing: Sequence[Sharing]) -> Times:
    """Event by event; a queue's speed changes only when another that it shares with starts or falls silent."""
    followers, waits = followers_of(graph)
    state = _State(graph, sharing)
    for task, count in enumerate(waits):
        if not count:
            state.begin(task)
    done = 0
    for task in state.ended():
        done += 1
        for other in followers[task]:
            waits[other] -= 1
            if not waits[other]:
                state.begin(other)
    _require_all(graph, waits, done)
    return Times(state.start, state.end)


class _State:
    """What runs, how much of it is left, and when the next task ends at today's speeds."""

    def __init__(self, graph: Graph, sharing: Sequence[Sharing]) -> None:
        self.graph, self.now = graph, 0.0
        self.start, self.end = [0.0] * len(graph), [0.0] * len(graph)
        self.domain = {queue: each for each in sharing for queue in each.queues}
        self.running: dict[int, int] = {}  # queue -> task
        self.left = list(graph.seconds)  # as if alone
        self.speed: dict[int, float] = {}
        self.since: dict[int, float] = {}
        self.round = [0] * len(graph)  # a task's latest forecast; older ones are void
        self.events: list[tuple[float, int, int]] = []
        self.changed: dict[int, int] = {}  # domains to settle, by identity, and a queue of each

    def begin(self, task: int) -> None:
        """Start a task now."""
        queue = self.graph.queue[task]
        self.start[task] = self.now
        self.running[queue], self.since[queue], self.speed[queue] = task, self.now, 1.0
        domain = self.domain.get(queue)
        if domain is None:
            self._forecast(task)
        else:
            self.changed[id(domain)] = queue

    def ended(self) -> Iterator[int]:
        """Tasks as they end."""
        self._settle()
        while self.events:
            at, task, forecast = heapq.heappop(self.events)
            if forecast != self.round[task]:
                continue
            self.now, self.end[task] = at, at
            queue = self.graph.queue[task]
            del self.running[queue]
            if queue in self.domain:
                self.changed[id(self.domain[queue])] = queue
            yield task
            if not (self.events and self.events[0][0] == at):
                self._settle()  # once for all that ends at this instant

    def _settle(self) -> None:
        """New speeds where a queue has started or fallen silent."""
        for queue in self.changed.values():
            domain = self.domain[queue]
            busy = [each for each in domain.queues if each in self.running]
            if not busy:
                continue
            for each, speed in zip(busy, domain.speeds(busy), strict=True):
                task = self.running[each]
                if speed != self.speed[each] or not self.round[task]:
                    self.left[task] = max(0.0, self.left[task] - (self.now - self.since[each]) * self.speed[each])
                    self.since[each], self.speed[each] = self.now, speed
                    self._forecast(task)
        self.changed.clear()

    def _forecast(self, task: int) -> None:
        """When the task ends if nothing changes."""
        self.round[task] += 1
        ends = self.now + self.left[task] / self.speed[self.graph.queue[task]]
        heapq.heappush(self.events, (ends, task, self.round[task]))


def _require_all(graph: Graph, waits: Sequence[int], done: int) -> None:
    if done < len(graph):
        first = next(task for task, count in enumerate(waits) if count)
        raise Deadlock(f"{len(graph) - done} tasks wait for each other, the first is {graph.label[first]}")
