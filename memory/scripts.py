"""Writing a script: a step's parts in order, where those that repeat are written once.

FSDP2 gathers around each block, and what a gather allocates depends on those before it; after a few equal blocks it
no longer changes, until the last of them, where nothing is left to gather ahead. Blocks between are equal to the byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from memory.events import Chain, Phase, Run, Script
from memory.gathers import Gathers
from suite.operators import Ledger

#: the slots before those of segments: what is made once a micro-batch comes, and goes
SHARED_MADE, SHARED_FREED = 0, 1
SLOTS_BEFORE = 2


@dataclass(frozen=True)
class Form:
    """What a script needs of a ledger: which of its segments are alike, which are blocks, where the loss begins."""

    pattern: tuple[int, ...]  # each segment's number among the distinct ones
    blocks: range  # places of those that are gathered by themselves, from the first to the last
    loss: int  # place of the first segment of head and loss; their number where there is none
    between: frozenset[int] = frozenset()  # places among them that are no blocks: between an encoder and a decoder

    def is_block(self, place: int) -> bool:
        """Is the segment there gathered by itself?"""
        return place in self.blocks and place not in self.between

    @property
    def back(self) -> Form:
        """The same from the last segment to the first."""
        last = len(self.pattern)
        between = frozenset(last - 1 - place for place in self.between)
        return Form(self.pattern[::-1], range(last - self.blocks.stop, last - self.blocks.start), 0, between)


def form_of(ledger: Ledger, kinds: Sequence[object]) -> Form:
    """The form of a ledger's segments; `kinds` tells them apart."""
    numbers: dict[object, int] = {}
    pattern = tuple(numbers.setdefault(kind, len(numbers)) for kind in kinds)
    blocks = [place for place, placed in enumerate(ledger.segments) if placed.prefix]
    loss = (place for place, placed in enumerate(ledger.segments) if placed.segment.name in ledger.loss)
    every = range(blocks[0], blocks[-1] + 1)
    return Form(pattern, every, next(loss, len(pattern)), frozenset(every) - frozenset(blocks))


def repeating_of(form: Form) -> list[range]:
    """Places of each run of a form's blocks, without those at either end that are like no other."""
    edges = [form.blocks.start - 1, *sorted(form.between & frozenset(form.blocks)), form.blocks.stop]
    runs = [range(left + 1, right) for left, right in pairwise(edges)]
    return [_repeating(form, run) for run in runs]


def _repeating(form: Form, places: range) -> range:
    counts = Counter(form.pattern)
    while places and counts[form.pattern[places[0]]] == 1:
        places = places[1:]
    while places and counts[form.pattern[places[-1]]] == 1:
        places = places[:-1]
    return places


def period_of(kinds: Sequence[int]) -> int:
    """The least number of places after which the kinds repeat; 1 of none."""
    kinds, count = tuple(kinds), len(kinds)
    return next((period for period in range(1, count) if kinds[period:] == kinds[: count - period]), max(count, 1))


class ScriptWriter:
    """Collects parts: slots, and what FSDP2 allocates between them, if it is used."""

    def __init__(self, gathers: Gathers | None = None) -> None:
        self.gathers = gathers
        self.runs: list[Run] = []
        self.parts: list[Phase | Chain | int] = []

    def put(self, part: Phase | Chain | int) -> None:
        """A part, after what has been gathered until now."""
        self._take()
        self.parts.append(part)

    def over(self, form: Form, write: Callable[[int], None], state: Callable[[], object] = tuple) -> None:
        """Write every place of a form, in either direction; what repeats among its blocks once, with how often.

        `state`: what, beside the gathers, a place depends on and leaves to the next.
        """
        done = 0
        for repeating in repeating_of(form):
            for place in range(done, repeating.start):
                write(place)
            self._repeat(form.pattern, repeating, write, state)
            done = repeating.stop
        for place in range(done, len(form.pattern)):
            write(place)

    def _repeat(
        self, kinds: Sequence[int], places: range, write: Callable[[int], None], state: Callable[[], object]
    ) -> None:
        """What begins as the period before it began is as that one was, and so are those that follow."""
        self._close()
        place, period = places.start, period_of(kinds[places.start : places.stop])
        while place < places.stop:
            found, mark = state(), self.gathers.mark() if self.gathers is not None else None
            stop = min(place + period, places.stop)
            for each in range(place, stop):
                write(each)
            place, more = stop, 0
            if state() == found:
                left = (places.stop - place) // period
                more = left if self.gathers is None or mark is None else self.gathers.repeat(mark, left)
            self._close(1 + more)
            place += more * period

    def cut(self) -> Script:
        """The parts since the last cut."""
        self._close()
        runs, self.runs = tuple(self.runs), []
        return runs

    def _take(self) -> None:
        if self.gathers is not None and self.gathers.events:
            self.parts.append(self.gathers.take())

    def _close(self, times: int = 1) -> None:
        self._take()
        if self.parts:
            self.runs.append(Run(tuple(self.parts), times))
            self.parts = []
