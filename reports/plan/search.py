"""The search: layouts in the order of what they take at the least, until none that is left can be among the best.

Families of layouts wait in a heap by a bound of their time. The one with the lowest is opened: into families with a
tighter bound, and at last into layouts, whose memory is estimated and, where they fit, their time. Once as many are
known as were asked for, and the heap's lowest bound is above the slowest of them, nothing better is left.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import NamedTuple

from memory.search import Search as MemorySearch
from parallelism.simulator.engine import Deadlock
from reports.plan.bounds import Bounds, Least, Piped
from reports.plan.space import Grain, Pipe, Space, Spread
from reports.plan.work import Engine, engine_of
from suite.case import Case
from suite.layout import Recompute
from suite.parse import SpecError

NO_RECOMPUTE = Recompute()
#: layouts that are timed together; a larger batch is cheaper for each, and times more than need be
BATCH = 64


class Found(NamedTuple):
    """A layout that may fit: about what it takes, as a whole simulation would have it; what it takes as searched, and
    at the least, which are less; and its peak."""

    seconds: float
    searched: float
    least: float
    order: int
    peak_bytes: int
    case: Case
    alike: Hashable
    """layouts with this have what a search leaves out in the same proportion, or nearly"""


@dataclass
class Tally:
    """What became of every layout."""

    refused: Counter[str] = field(default_factory=Counter)  # by reason; families where one rule refuses all
    too_large: int = 0
    timed: int = 0
    untimed: Counter[str] = field(default_factory=Counter)  # that fit, by the reason why they have no time
    left: int = 0  # not looked at: slower at the least than the best are

    @property
    def legal(self) -> int:
        """Layouts that the rules take."""
        return self.too_large + self.timed + self.untimed.total() + self.left


class _Family(NamedTuple):
    bound: float
    order: int
    grain: Grain
    engine: Engine
    pp: int
    pipe: Pipe | None = None
    spreads: tuple[tuple[Spread, Least], ...] = ()  # those that may fit, once they have been looked at
    spread: Spread | None = None
    slowed: float = 0.0


@dataclass
class Search:
    """One search over a space. `limit` is the most bytes that a layout may need; `seconds` times cases."""

    space: Space
    bounds: Bounds
    limit: float
    seconds: Callable[[Sequence[Case]], list[float]]
    memory: MemorySearch = field(default_factory=MemorySearch)
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._orders = count()
        self._heap: list[_Family] = []
        self._waiting: list[tuple[Case, int, _Family]] = []
        self._found: list[Found] = []
        self._ratios: dict[Hashable, float] = {}
        for grain, pp in self.space.grains():
            self._put_grain(grain, pp)

    def next(self) -> Found | None:
        """The fastest that may fit of those not given yet; None where there is no other."""
        while self._heap or self._waiting or self._found:
            lowest = self._heap[0].bound if self._heap else inf
            is_found = bool(self._found) and self._found[0].seconds <= lowest
            if self._waiting and (is_found or len(self._waiting) >= BATCH or not self._heap):
                self._time()
            elif is_found:
                found = heapq.heappop(self._found)
                about = self._about(found.searched, found.seconds, found.alike)
                if about <= found.seconds:
                    return found
                heapq.heappush(self._found, found._replace(seconds=about))
            else:
                self._open(heapq.heappop(self._heap))
        return None

    def learn(self, found: Found, seconds: float) -> None:
        """What one of those given takes as a whole: layouts that are alike are put in order by it."""
        self._ratios[found.alike] = seconds / found.searched

    def _about(self, searched: float, least: float, alike: Hashable) -> float:
        return max(least, searched * self._ratios.get(alike, 0.0))

    @property
    def floor_seconds(self) -> float:
        """What any layout takes at the least that was not given."""
        return min(self._least_bound, min((found.least for found in self._found), default=inf))

    @property
    def next_seconds(self) -> float:
        """About what the next takes; inf where there is none."""
        return min(self._least_bound, self._found[0].seconds if self._found else inf)

    @property
    def _least_bound(self) -> float:
        """Of those that are not timed yet."""
        waiting = min((family.bound for _, _, family in self._waiting), default=inf)
        return min(waiting, self._heap[0].bound if self._heap else inf)

    # --- families ---------------------------------------------------------------------------------------

    def _put_grain(self, grain: Grain, pp: int) -> None:
        """Into the heap by a bound that needs no pricing of its own: recomputation only adds."""
        pipes = self.space.pipes(grain, pp)
        why = self.space.refuses_grain(grain)
        if why:
            self.tally.refused[why] += 1
            return
        self.tally.refused += pipes.refused
        for pipe in pipes.legal:
            self.tally.refused += self.space.spreads(grain, pipe).refused
        plain = grain._replace(recompute=NO_RECOMPUTE)
        for engine in self._engines(grain, pp):
            number = self._count(grain, pipes.legal, engine)
            if not number:
                continue  # nor can what bounds them be a case
            if self.bounds.least_state(grain, pp, engine) > self.limit:
                self.tally.too_large += number
                continue
            bound = self.bounds.busy_seconds(plain, pp, pipes.legal[0].micro_batches, engine)
            self._put(_Family(bound, 0, grain, engine, pp))
            self.tally.left += number

    def _open(self, family: _Family) -> None:
        if family.spread is not None:
            self._try(family)
        elif family.pipe is None:
            self._put_pipes(family)
        elif not family.spreads:
            self._put_pipe(family, family.pipe)
        else:
            for spread, least in family.spreads:
                bound = max(family.bound, least.seconds)
                self._put(family._replace(bound=bound, spreads=(), spread=spread, slowed=least.slowed))

    def _put_pipes(self, family: _Family) -> None:
        grain, engine, pp = family.grain, family.engine, family.pp
        pipes = self.space.pipes(grain, pp).legal
        if self.bounds.least_bytes(grain, pp, engine) > self.limit:
            self._leave_out(self._count(grain, pipes, engine))
            return
        own = self.bounds.busy_seconds(grain, pp, pipes[0].micro_batches, engine)
        if own > family.bound:  # priced by itself now: it waits for its turn
            self._put(family._replace(bound=own))
            return
        for pipe in pipes:
            self._put(family._replace(bound=self._piped(grain, pipe, engine).seconds, pipe=pipe))

    def _put_pipe(self, family: _Family, pipe: Pipe) -> None:
        """Again, with a tighter bound, and with the spreads that may fit."""
        grain, engine, bounds = family.grain, family.engine, self.bounds
        piped, spreads = self._piped(grain, pipe, engine), self._spreads(grain, pipe, engine)
        flying = bounds.flying(grain, pipe, engine)
        small = [each for each in spreads if bounds.nbytes(grain, each, flying, pipe.micro_batches) <= self.limit]
        self._leave_out(len(spreads) - len(small))
        if small:
            found = tuple((each, bounds.seconds(grain, pipe, each, piped)) for each in small)
            least = min(least.seconds for _, least in found)
            bound = max(family.bound, least, bounds.longest(grain, pipe, engine))
            self._put(family._replace(bound=bound, spreads=found))

    def _leave_out(self, number: int) -> None:
        self.tally.left -= number
        self.tally.too_large += number

    def _piped(self, grain: Grain, pipe: Pipe, engine: Engine) -> Piped:
        return self.bounds.memo.once(("piped", grain, pipe, engine), lambda: self.bounds.piped(grain, pipe, engine))

    def _try(self, family: _Family) -> None:
        """Its memory; where it may fit, it waits for its time."""
        assert family.pipe is not None
        assert family.spread is not None
        try:
            case = self.space.case(family.grain, family.pipe, family.spread)
            peak = self.memory.peak_bytes(case)
        except SpecError as error:
            self.tally.left -= 1
            self.tally.refused[str(error)] += 1
            return
        if peak > self.limit:
            self._leave_out(1)
        else:
            self._waiting.append((case, peak, family))

    def _time(self) -> None:
        waiting, self._waiting = self._waiting, []
        self.tally.left -= len(waiting)
        try:
            self._keep(waiting, self.seconds([case for case, _, _ in waiting]))
        except (SpecError, Deadlock):
            for one in waiting:
                try:
                    self._keep([one], self.seconds([one[0]]))
                except (SpecError, Deadlock) as error:
                    self.tally.untimed[str(error)] += 1

    def _keep(self, waiting: Sequence[tuple[Case, int, _Family]], times: Sequence[float]) -> None:
        self.tally.timed += len(waiting)
        for time, (case, peak, family) in zip(times, waiting, strict=True):
            # searched times leave out what compute loses beside messages, most of which are hidden behind it
            least = max(time, family.bound)
            reshards = family.spread is not None and family.spread.reshard_after_forward
            alike = family.grain.recompute, family.pipe, family.engine, reshards
            about = self._about(time, max(time + family.slowed, least), alike)
            heapq.heappush(self._found, Found(about, time, least, next(self._orders), peak, case, alike))

    def _put(self, family: _Family) -> None:
        heapq.heappush(self._heap, family._replace(order=next(self._orders)))

    def _engines(self, grain: Grain, pp: int) -> list[Engine]:
        is_whole = grain.tp == grain.cp == grain.ep == pp == 1 and self.space.asked.gpus > 1
        return [engine for engine in Engine if is_whole or engine is not Engine.DEEPSPEED]

    def _count(self, grain: Grain, pipes: Sequence[Pipe], engine: Engine) -> int:
        return sum(len(self._spreads(grain, pipe, engine)) for pipe in pipes)

    def _spreads(self, grain: Grain, pipe: Pipe, engine: Engine) -> list[Spread]:
        return [spread for spread in self.space.spreads(grain, pipe).legal if engine_of(spread) is engine]
