"""Zero-bubble pipelines by heuristic, ZB-1p and ZB-2p (arXiv:2401.10241, section 3.1): orders made for given times."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

from parallelism.schedules.orders import Action, Pass
from suite.parse import require


@dataclass(frozen=True, slots=True)
class StageTimes:
    """What a micro-batch takes on any stage, in seconds: the three passes, and a message to a neighbour."""

    forward: float
    inputs: float
    weights: float
    send: float = 0.0

    @property
    def compute(self) -> float:
        """All three passes."""
        return self.forward + self.inputs + self.weights


@dataclass(frozen=True, slots=True)
class StageMemory:
    """What a rank may hold, and what a micro-batch does to it, in one unit: a forward pass adds both, the input
    gradient lets go of `until_inputs`, the weight gradient of `until_weights`."""

    limit: float
    until_inputs: float
    until_weights: float

    @property
    def forward(self) -> float:
        """What a micro-batch's activations take."""
        return self.until_inputs + self.until_weights


def searched_orders(
    pp: int, micro_batches: int, times: StageTimes, memory: StageMemory
) -> tuple[tuple[Action, ...], ...]:
    """What each pipeline rank runs, one stage a rank: the best of the heuristic's eight variants.

    Best is the least longest span of a rank, from its first pass to its last: its work, the same on all, and its waits.
    Not modelled: the integer program that
    the paper starts from this solution. SpecError where not even one micro-batch fits.
    """
    require(pp >= 1 and micro_batches >= 1, f"pp, micro_batches: must be at least 1, got {pp}, {micro_batches}")
    require(memory.forward <= memory.limit, f"limit: {memory.limit} holds no micro-batch of {memory.forward}")
    best, orders = math.inf, tuple[tuple[Action, ...], ...]()
    for choices in product((True, False), repeat=3):
        search = _Search(pp, micro_batches, times, memory, _Choices(*choices))
        if search.is_better(best):
            best, orders = search.longest_wait, search.orders
    return orders


@dataclass(frozen=True, slots=True)
class _Choices:
    """The heuristic's binary parameters."""

    late_first_gradient: bool  # warm up past the arrival of the first gradient rather than wait for it
    skips_forwards: bool  # let a rank that is ahead skip a forward pass that would delay a gradient
    fills_small_gaps: bool  # a weight gradient in a gap that is shorter than it and no worse than another rank's


@dataclass(slots=True)
class _Rank:
    """A rank's passes so far, when those that others wait for ended, when it is free, what it holds, how long it has
    waited, and how many weight gradients could run."""

    line: list[Pass] = field(default_factory=list)
    forwards: list[float] = field(default_factory=list)
    inputs: list[float] = field(default_factory=list)
    free: float = 0.0
    held: float = 0.0
    waited: float = 0.0
    pending: int = 0


class _Search:
    """A variant: rounds of at most one forward pass (down the ranks) and one input gradient (up) on each."""

    def __init__(self, pp: int, count: int, times: StageTimes, memory: StageMemory, choices: _Choices) -> None:
        self.count, self.times, self.memory, self.choices = count, times, memory, choices
        self.ranks = [_Rank() for _ in range(pp)]
        self.last, self.longest_wait = pp - 1, 0.0

    def is_better(self, wait: float) -> bool:
        """Find every pass of the step, unless a rank waits this long before that."""
        self._warm_up()
        for _ in range(1, self.count):
            if self.longest_wait >= wait:
                return False
            wanted = self._wanted_forwards()
            for place in wanted:
                self._after_weights(place, Pass.FORWARD)
            for place in reversed(range(len(self.ranks))):
                if place == 0 and len(self.ranks[0].forwards) == self.count:
                    self._all_weights(0)  # nobody waits for the first rank's gradients
                self._after_weights(place, Pass.INPUT)
        for place in range(len(self.ranks)):
            self._all_weights(place)
        return self.longest_wait < wait

    @property
    def orders(self) -> tuple[tuple[Action, ...], ...]:
        """What was found."""
        return tuple(_numbered(place, rank.line) for place, rank in enumerate(self.ranks))

    # --- one pass ---

    def _arrival(self, place: int, kind: Pass) -> float:
        """When what the rank's next pass of this kind, forward or input gradient, needs of a neighbour is there."""
        if kind is Pass.FORWARD:
            ends = self.ranks[place - 1].forwards[len(self.ranks[place].forwards)] if place else None
        else:
            ends = self.ranks[place + 1].inputs[len(self.ranks[place].inputs)] if place < self.last else None
        return 0.0 if ends is None else ends + self.times.send

    def _put(self, place: int, kind: Pass, arrival: float = 0.0) -> None:
        rank = self.ranks[place]
        if arrival > rank.free:
            if rank.line:
                rank.waited += arrival - rank.free
                self.longest_wait = max(self.longest_wait, rank.waited)
            rank.free = arrival
        rank.line.append(kind)
        if kind is Pass.FORWARD:
            rank.free += self.times.forward
            rank.held += self.memory.forward
            rank.forwards.append(rank.free)
        elif kind is Pass.INPUT:
            rank.free += self.times.inputs
            rank.held -= self.memory.until_inputs
            rank.inputs.append(rank.free)
            rank.pending += 1
        else:
            rank.free += self.times.weights
            rank.held -= self.memory.until_weights
            rank.pending -= 1

    def _all_weights(self, place: int) -> None:
        while self.ranks[place].pending:
            self._put(place, Pass.WEIGHT)

    def _after_weights(self, place: int, kind: Pass) -> None:
        """A pass, and before it the weight gradients that make room for it or fill the wait for it."""
        rank, arrival = self.ranks[place], self._arrival(place, kind)
        while kind is Pass.FORWARD and rank.pending and rank.held + self.memory.forward > self.memory.limit:
            self._put(place, Pass.WEIGHT)
        while rank.pending and rank.free + self.times.weights <= arrival:
            self._put(place, Pass.WEIGHT)
        gap = arrival - rank.free
        if rank.pending and gap > 0 and (self.choices.fills_small_gaps or gap > self.longest_wait - rank.waited):
            self._put(place, Pass.WEIGHT)
        self._put(place, kind, arrival)

    # --- rounds ---

    def _warm_up(self) -> None:
        """Forward passes until the first gradient is there, as memory allows; more of them on the earlier ranks."""
        for place in range(len(self.ranks)):
            self._put(place, Pass.FORWARD, self._arrival(place, Pass.FORWARD))
        more, gradient = [0] * len(self.ranks), -self.times.send
        for place, rank in reversed(list(enumerate(self.ranks))):
            if place < len(self.ranks) - 1:
                more[place] = self._forwards_until(rank, gradient + self.times.send)
            start = max(rank.free + more[place] * self.times.forward, gradient + self.times.send)
            gradient = start + self.times.inputs
        for place in range(1, len(more)):
            most = max(0, more[place - 1] - 1)
            if more[place] > most and 1 + more[place] < self.count:
                more[place] = most
        for place, forwards in enumerate(more):
            for _ in range(forwards):
                self._put(place, Pass.FORWARD, self._arrival(place, Pass.FORWARD))
        for place in reversed(range(len(self.ranks))):
            self._put(place, Pass.INPUT, self._arrival(place, Pass.INPUT))

    def _forwards_until(self, rank: _Rank, gradient: float) -> int:
        """Forward passes after the first that have room, in memory and until the first gradient arrives."""
        found, held, free = 0, rank.held, rank.free
        while 1 + found < self.count and held + self.memory.forward <= self.memory.limit:
            done = free + self.times.forward
            if free >= gradient if self.choices.late_first_gradient else done > gradient:
                break
            found, held, free = found + 1, held + self.memory.forward, done
        return found

    def _wanted_forwards(self) -> Sequence[int]:
        """Ranks that take a forward pass this round: none whose next rank skips it, so that each stays ahead."""
        places = range(len(self.ranks))
        skips = [place for place in places if not self._wants(place)]
        return places[skips[-1] + 1 :] if skips else places

    def _wants(self, place: int) -> bool:
        """Does the next forward pass of a rank come before its gradient, or make up for waits of others?"""
        rank = self.ranks[place]
        if len(rank.forwards) == self.count:
            return False
        if place == self.last or not self.choices.skips_forwards:
            return True
        later = self.ranks[place + 1]
        if len(rank.forwards) < len(later.forwards) + 2:
            return True
        gradient = later.free + self.times.forward + self.times.inputs + self.times.send
        if rank.free >= gradient:
            return False
        room, weights = rank.held + self.memory.forward, 0
        while room > self.memory.limit and weights < rank.pending:
            room, weights = room - self.memory.until_weights, weights + 1
        if rank.free + self.times.forward + weights * self.times.weights <= gradient:
            return True
        return gradient - rank.free > self.longest_wait - rank.waited


def _numbered(place: int, line: Sequence[Pass]) -> tuple[Action, ...]:
    """Passes of a stage with their micro-batches, which come in order in each kind."""
    done: Counter[Pass] = Counter()
    actions = []
    for kind in line:
        actions.append(Action(place, kind, done[kind]))
        done[kind] += 1
    return tuple(actions)
