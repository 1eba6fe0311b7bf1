"""Events of the walk: so many bytes more or fewer of something, and stretches of them with their highest instant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
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


class Log:
    """Events in order, with the highest instant and the sum."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.uses: list[Use] = []

    def add(self, nbytes: int, label: Label) -> None:
        """Record a change."""
        if nbytes:
            self.events.append(Event(nbytes, label))

    def note(self, act: Act, weights: tuple[Weight, ...]) -> None:
        """Record what happens to weights."""
        if weights:
            self.uses.append(Use(len(self.events), act, weights))

    def freeze(self) -> Phase:
        """The log as a Phase."""
        return phase_of(self.events, self.uses)


def phase_of(events: Iterable[Event], uses: Iterable[Use] = ()) -> Phase:
    """Events as a Phase, with its sum and highest instant."""
    kept = tuple(events)
    levels = list(accumulate((event.nbytes for event in kept), initial=0))
    peak_at = max(range(len(levels)), key=levels.__getitem__)
    return Phase(kept, levels[-1], levels[peak_at], peak_at, tuple(uses))


@dataclass(frozen=True)
class Phase:
    """A stretch of events, relative to the level it begins at."""

    events: tuple[Event, ...] = ()
    net: int = 0  # level at its end
    peak: int = 0  # highest level in it (0 where it only falls)
    peak_at: int = 0  # events before that instant
    uses: tuple[Use, ...] = ()

    def composition(self, until: int | None = None) -> dict[Label, int]:
        """Bytes by label over the first `until` events (all of them if None); what cancels is left out."""
        sums: dict[Label, int] = defaultdict(int)
        for event in self.events[:until]:
            sums[event.label] += event.nbytes
        return {label: nbytes for label, nbytes in sums.items() if nbytes}

    @cached_property
    def change(self) -> dict[Label, int]:
        """The composition of the whole stretch."""
        return self.composition()


def gradient_label(component: Component, name: str, nbytes: int) -> Label:
    """Gradients of parameters, so many bytes an element."""
    return Label(component, name, f"parameters reached*{nbytes}", 0, "one gradient for each parameter, in its type")
