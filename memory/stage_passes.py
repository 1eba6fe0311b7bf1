"""What a pipeline's schedule has its stages do, and what each does depends on: what those before have left."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from memory.events import Chain
from memory.stage_walk import StageWalk


class Doing(Enum):
    """What a stage does."""

    __hash__ = object.__hash__  # members are single objects; Enum's own would be most of what a search costs

    GATHER = auto()  # the schedule wants its parameters gathered ahead
    RELEASE = auto()  # and lets go of them
    FORWARD = auto()  # to the end of the blocks; then the head and the loss
    BACKWARD = auto()  # a whole backward pass
    INPUTS = auto()  # one over inputs alone
    WEIGHTS = auto()  # the pass over weights that is left
    REDUCE = auto()  # after the stage's last backward pass


class Progress(Hashable, Protocol):
    """What a stage's passes have left."""

    def after(self, doing: Doing) -> Progress:
        """What is left when that is done."""
        ...


class StagePasses(Protocol):
    """A stage's passes."""

    walk: StageWalk

    def passes(self, doing: Doing, progress: Progress) -> tuple[Chain, Chain]:
        """What it allocates, and what from the head on. Each is made once."""
        ...


@dataclass(frozen=True)
class Plain:
    """Of a stage whose parameters and gradients stay where they are."""

    has_gradients: bool = False

    def after(self, doing: Doing) -> Plain:
        """The first pass that makes gradients leaves them for the others to add to."""
        return Plain(True) if doing in (Doing.BACKWARD, Doing.WEIGHTS) else self


class PlainStage:
    """A stage whose parameters and gradients stay where they are: its passes are its walk's."""

    def __init__(self, walk: StageWalk) -> None:
        self.walk = walk
        self.made: dict[tuple[Doing, Progress], tuple[Chain, Chain]] = {}

    def passes(self, doing: Doing, progress: Progress) -> tuple[Chain, Chain]:
        """The walk's; there is nothing to gather, and nothing to reduce that is alive for long."""
        key = doing, progress
        if key not in self.made:
            assert isinstance(progress, Plain)
            self.made[key] = self._pass(doing, progress.has_gradients)
        return self.made[key]

    def _pass(self, doing: Doing, adds: bool) -> tuple[Chain, Chain]:
        nothing = Chain(())
        if doing is Doing.FORWARD:
            return self.walk.forward()
        if doing is Doing.BACKWARD:
            return self.walk.backward(adds), nothing
        if doing is Doing.INPUTS:
            return self.walk.inputs(), nothing
        return (self.walk.weights(adds), nothing) if doing is Doing.WEIGHTS else (nothing, nothing)
