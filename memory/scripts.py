"""Writing a script: a step's parts in order, where those that repeat are written once.

FSDP2 gathers around each block, and what a gather allocates depends on those before it; after a few equal blocks it
no longer changes, until the last of them, where nothing is left to gather ahead. Blocks between are equal to the byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memory.events import Chain, Phase, Run, Script
from memory.gathers import Gathers, Mark
from suite.operators import Ledger

#: the slots before those of segments: what is made once a micro-batch comes, and goes
SHARED_MADE, SHARED_FREED = 0, 1
SLOTS_BEFORE = 2


@dataclass(frozen=True)
class Form:
    """What a script needs of a ledger: which of its segments are alike, which are blocks, where the loss begins."""

    pattern: tuple[int, ...]  # each segment's number among the distinct ones
    blocks: range  # places of those that are gathered by themselves
    loss: int  # place of the first segment of head and loss; their number where there is none


def form_of(ledger: Ledger, kinds: Sequence[object]) -> Form:
    """The form of a ledger's segments; `kinds` tells them apart."""
    numbers: dict[object, int] = {}
    pattern = tuple(numbers.setdefault(kind, len(numbers)) for kind in kinds)
    blocks = [place for place, placed in enumerate(ledger.segments) if placed.prefix]
    loss = (place for place, placed in enumerate(ledger.segments) if placed.segment.name in ledger.loss)
    return Form(pattern, range(blocks[0], blocks[-1] + 1), next(loss, len(pattern)))


def period_of(kinds: Sequence[int]) -> int:
    """The least number of places after which the kinds repeat."""
    kinds = tuple(kinds)
    return next(period for period in range(1, len(kinds) + 1) if kinds[period:] == kinds[: len(kinds) - period])


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

    def over(self, kinds: Sequence[int], write: Callable[[int], None]) -> None:
        """Write every place of `kinds`. What begins as the period before it began is written as often as it repeats."""
        self._close()
        index, period = 0, period_of(kinds) if kinds else 1
        while index < len(kinds):
            before = self._mark()
            stop = min(index + period, len(kinds))
            for place in range(index, stop):
                write(place)
            index = stop
            more = self._repeats(before, (len(kinds) - index) // period)
            self._close(1 + more)
            index += more * period

    def _mark(self) -> Mark | None:
        return self.gathers.mark() if self.gathers is not None else None

    def _repeats(self, before: Mark | None, left: int) -> int:
        """How many of the periods left are as the last one was: it ended as it began, and so will they."""
        if self.gathers is None or before is None:
            return left
        return self.gathers.repeat(before, left)

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
