"""Events of the walk: so many bytes more or fewer of something, and stretches of them with their highest instant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from itertools import accumulate

from suite.operators import Weight
from suite.record import Component


@dataclass(frozen=True, slots=True)
class Label:
    """What an event's bytes are: the component they count under, a name, the formula and bytes of one such
    tensor, and where the rule comes from."""

    component: Component
    name: str
    formula: str
    unit: int
    source: str


@dataclass(frozen=True, slots=True)
class Event:
    """So many bytes more (or fewer) of something."""

    nbytes: int
    label: Label


class Act(Enum):
    """What happens to weights that a strategy may have to do with."""

    NEEDED = auto()  # their module is about to run, forward or backward
    LEFT = auto()  # it has run
    RERUN = auto()  # its forward has run again, and its backward keeps what it read
    REDUCIBLE = auto()  # the gradient is whole


@dataclass(frozen=True, slots=True)
class Use:
    """Something happens to weights after so many events of a stretch."""

    at: int
    act: Act
    weights: tuple[Weight, ...]


#: says what an event's bytes are; asked for where terms are shown, never for a level
Naming = Callable[[], Label]


class Log:
    """Events in order, and what happens to weights between them."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.namings: list[Naming] = []
        self.uses: list[Use] = []

    def add(self, nbytes: int, naming: Naming) -> None:
        """Record a change."""
        if nbytes:
            self.sizes.append(nbytes)
            self.namings.append(naming)

    def note(self, act: Act, weights: tuple[Weight, ...]) -> None:
        """Record what happens to weights."""
        if weights:
            self.uses.append(Use(len(self.sizes), act, weights))

    def freeze(self) -> Phase:
        """The log as a Phase."""
        return Phase(self.sizes, self.namings, tuple(self.uses))


def phase_of(events: Iterable[Event], uses: Iterable[Use] = ()) -> Phase:
    """Events as a Phase."""
    kept = tuple(events)
    phase = Phase([event.nbytes for event in kept], (), tuple(uses))
    phase.events = kept
    return phase


def passing(tensors: Iterable[tuple[int, Naming]]) -> Phase:
    """Tensors that come and go one after another, each of so many bytes."""
    log = Log()
    for nbytes, naming in tensors:
        log.add(nbytes, naming)
        log.add(-nbytes, naming)
    return log.freeze()


class Phase:
    """A stretch of events, relative to the level it begins at."""

    def __init__(self, sizes: Sequence[int] = (), namings: Sequence[Naming] = (), uses: tuple[Use, ...] = ()) -> None:
        self.sizes = sizes
        self.namings = namings
        self.uses = uses
        levels = list(accumulate(sizes, initial=0))
        self.net = levels[-1]  # level at its end
        self.peak = max(levels)  # highest level in it (0 where it only falls)

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """Every event, in order."""
        return tuple(Event(nbytes, naming()) for nbytes, naming in zip(self.sizes, self.namings, strict=True))

    @cached_property
    def peak_at(self) -> int:
        """Events before the highest instant."""
        return _highest_at(self.sizes)

    def composition(self, until: int | None = None) -> dict[Label, int]:
        """Bytes by label over the first `until` events (all of them if None); what cancels is left out."""
        return _composition(self.events[:until])

    @cached_property
    def change(self) -> dict[Label, int]:
        """The composition of the whole stretch."""
        return self.composition()


@dataclass(frozen=True, slots=True)
class Run:
    """Parts one after another, so many times over. A part that is a number is a slot's, filled in later."""

    parts: tuple[Phase | Chain | int, ...]
    times: int = 1


#: stretches end to end, some of them still to be filled in
Script = tuple[Run, ...]


class Chain:
    """A script and what fills its slots: a long stretch whose levels follow from its parts', exactly.

    Parts that come n times over, with a net of a and a peak of p together, have a net of n a and a peak of
    max(p, (n - 1) a + p). Events are laid end to end only where they are asked for.
    """

    net: int
    peak: int

    def __init__(self, script: Script, slots: Sequence[Phase | Chain] = ()) -> None:
        self.script = script
        self.slots = slots
        net = peak = 0
        for run in script:
            level = top = 0
            for part in run.parts:
                filled = slots[part] if isinstance(part, int) else part
                if level + filled.peak > top:
                    top = level + filled.peak
                level += filled.net
            if level > 0:
                top += (run.times - 1) * level
            if net + top > peak:
                peak = net + top
            net += run.times * level
        self.net = net
        self.peak = peak

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """Every event, in order."""
        found: list[Event] = []
        for run in self.script:
            found += [event for part in run.parts for event in self._filled(part).events] * run.times
        return tuple(found)

    @cached_property
    def peak_at(self) -> int:
        """Events before the highest instant."""
        return _highest_at(event.nbytes for event in self.events)

    def composition(self, until: int | None = None) -> dict[Label, int]:
        """Bytes by label over the first `until` events (all of them if None); what cancels is left out."""
        return _composition(self.events[:until])

    @cached_property
    def change(self) -> dict[Label, int]:
        """The composition of the whole stretch."""
        sums: dict[Label, int] = defaultdict(int)
        for run in self.script:
            for part in run.parts:
                for label, nbytes in self._filled(part).change.items():
                    sums[label] += nbytes * run.times
        return {label: nbytes for label, nbytes in sums.items() if nbytes}

    def _filled(self, part: Phase | Chain | int) -> Phase | Chain:
        return self.slots[part] if isinstance(part, int) else part


def _highest_at(sizes: Iterable[int]) -> int:
    levels = list(accumulate(sizes, initial=0))
    return levels.index(max(levels))


def _composition(events: Iterable[Event]) -> dict[Label, int]:
    sums: dict[Label, int] = defaultdict(int)
    for event in events:
        sums[event.label] += event.nbytes
    return {label: nbytes for label, nbytes in sums.items() if nbytes}


def gradient_label(component: Component, name: str, nbytes: int) -> Label:
    """Gradients of parameters, so many bytes an element."""
    return Label(component, name, f"parameters reached*{nbytes}", 0, "one gradient for each parameter, in its type")
