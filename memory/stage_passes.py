"""A stage's passes as a step goes on: what each allocates depends on what those before have left. Each is made once."""

from __future__ import annotations

from typing import Protocol

from memory.events import Phase
from memory.stage_walk import StageWalk


class StagePasses(Protocol):
    """What a pipeline asks of a stage."""

    walk: StageWalk

    def gather(self) -> Phase:
        """The schedule wants the stage's parameters gathered ahead."""
        ...

    def release(self) -> Phase:
        """The schedule lets go of them."""
        ...

    def forward(self) -> tuple[Phase, Phase]:
        """A forward pass to the end of the blocks, and of the head with the loss."""
        ...

    def backward(self) -> Phase:
        """A whole backward pass."""
        ...

    def inputs(self) -> Phase:
        """A backward pass over inputs alone."""
        ...

    def weights(self) -> Phase:
        """The pass over weights that is left."""
        ...

    def reduce(self) -> Phase:
        """After the stage's last backward pass."""
        ...


class PlainStage:
    """A stage whose parameters and gradients stay where they are."""

    def __init__(self, walk: StageWalk) -> None:
        self.walk = walk
        self.has_gradients = False
        self.made: dict[tuple[str, bool], Phase] = {}

    def gather(self) -> Phase:
        """Nothing: the parameters are there."""
        return Phase()

    def release(self) -> Phase:
        """Nothing: they stay."""
        return Phase()

    def forward(self) -> tuple[Phase, Phase]:
        """The walk's."""
        return self.walk.forward

    def backward(self) -> Phase:
        """The walk's: the first makes gradients, the others add to them."""
        key = "backward", self.has_gradients
        if key not in self.made:
            self.made[key] = self.walk.backward(self.has_gradients)
        self.has_gradients = True
        return self.made[key]

    def inputs(self) -> Phase:
        """The walk's."""
        return self.walk.inputs

    def weights(self) -> Phase:
        """The walk's: the first makes gradients, the others add to them."""
        key = "weights", self.has_gradients
        if key not in self.made:
            self.made[key] = self.walk.weights(self.has_gradients)
        self.has_gradients = True
        return self.made[key]

    def reduce(self) -> Phase:
        """Nothing that is alive for long: DDP's buckets are held anyway."""
        return Phase()
