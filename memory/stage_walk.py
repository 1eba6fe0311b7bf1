"""A pipeline stage's passes over one micro-batch: its segments' walks end to end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

from parallelism.schedules.stages import Stage

from memory.events import Event, Label, Phase, phase_of
from memory.labels import Labels, WalkRules
from memory.split_walk import SplitWalk, walk_split
from memory.walk import SegmentWalk, walk_segment
from suite.operators import Array, Ledger, Placed, Segment
from suite.record import Component


class StageWalk:
    """The passes of one stage. `found` are weights whose gradient another stage of the rank has made before;
    `gradients` is what gradients are called where a strategy reduces and frees them."""

    def __init__(
        self, ledger: Ledger, stage: Stage, found: frozenset[str] = frozenset(), gradients: Label | None = None
    ) -> None:
        self.gradients = gradients
        self.ledger = ledger
        self.stage = stage
        self.found = found
        self.walks: dict[tuple[Segment, WalkRules], SegmentWalk] = {}
        self.splits: dict[tuple[Segment, WalkRules], SplitWalk] = {}

    @cached_property
    def stream(self) -> Array:
        """What a block takes and makes."""
        return next(placed.segment for placed in self.ledger.segments if placed.prefix).inputs[0]

    @cached_property
    def output(self) -> Label:
        """What the stage's output is called."""
        return self._names.of_border(self.stream)

    @cached_property
    def input_gradient(self) -> Label:
        """What the gradient of the stage's input is called."""
        return self._names.of_gradient(self.stream)

    @cached_property
    def forward(self) -> tuple[Phase, Phase]:
        """A forward pass to the end of the blocks, and of the head with the loss; then autocast ends."""
        split = next(
            (place for place, placed in enumerate(self.ledger.segments) if self.is_loss(placed)),
            len(self.ledger.segments),
        )
        walks = [walk for _, walk in self.segments(False)]
        body = [*self.shared(1), *(event for walk in walks[:split] for event in walk.forward.events)]
        loss = [event for walk in walks[split:] for event in walk.forward.events]
        uncached = [event for walk in walks for event in walk.uncache.events]
        return (phase_of(body), phase_of(loss + uncached)) if loss else (phase_of(body + uncached), Phase())

    def backward(self, accumulate: bool) -> Phase:
        """A backward pass that makes the gradients, or adds to them."""
        walks = list(self.segments(accumulate))
        events: list[Event] = []
        for place, (_, walk) in reversed(list(enumerate(walks))):
            events += walk.backward.events
            if place == self.first_block:
                events += self.shared(-1)
        return phase_of(events)

    @cached_property
    def inputs(self) -> Phase:
        """A backward pass that makes the gradient of the stage's input alone."""
        walks = self.split_segments(False)
        events = [event for walk in reversed(walks) for event in walk.inputs.events]
        return phase_of([*events, *walks[-1].above.events])

    def weights(self, accumulate: bool) -> Phase:
        """The pass that follows it: it makes the gradients of the weights, or adds to them."""
        walks = self.split_segments(accumulate)
        events: list[Event] = []
        seed: tuple[Event, ...] = ()
        added: tuple[Event, ...] = ()
        for group in (group for walk in walks for group in walk.weights):
            events += [*seed, *group.made.events, *added]
            seed, added = group.seed.events, group.added.events
        events += [*seed, *added, *(event for walk in walks for event in walk.left.events)]
        return phase_of(events + self.shared(-1))

    def split_segments(self, accumulate: bool) -> list[SplitWalk]:
        """The segments' walks of a backward pass in two."""
        last = len(self.ledger.segments) - 1
        walks: list[SplitWalk] = []
        for place, placed in enumerate(self.ledger.segments):
            key = placed.segment, self._rules(placed, place == 0, place == last, accumulate)
            if key not in self.splits:
                self.splits[key] = walk_split(*key, is_top=place == last)
            walks.append(self.splits[key])
        return walks

    def segments(self, accumulate: bool) -> Iterator[tuple[Placed, SegmentWalk]]:
        """The segments and their walks; `accumulate`: gradients are there to be added to."""
        last = len(self.ledger.segments) - 1
        for place, placed in enumerate(self.ledger.segments):
            yield placed, self._walk(placed, self._rules(placed, place == 0, place == last, accumulate))

    def _walk(self, placed: Placed, rules: WalkRules) -> SegmentWalk:
        key = placed.segment, rules
        if key not in self.walks:
            self.walks[key] = walk_segment(*key)
        return self.walks[key]

    def _rules(self, placed: Placed, is_first: bool, is_last: bool, accumulate: bool) -> WalkRules:
        rules = WalkRules(
            kept=Component.LOSS if self.is_loss(placed) else Component.ACTIVATIONS,
            accumulate=accumulate,
            keeps_input=is_first and not self.stage.has_embedding,
            keeps_seed=is_last and not self.stage.has_head,
            joins_ties=False,
            found=self.found,
        )
        if self.gradients is None:
            return rules
        return replace(rules, gradients=self.gradients.component, gradient_name=self.gradients.name)

    def is_loss(self, placed: Placed) -> bool:
        """Is the segment the head with the loss?"""
        return placed.segment.name in self.ledger.loss

    @cached_property
    def _names(self) -> Labels:
        segment = next(placed.segment for placed in self.ledger.segments if placed.prefix)
        return Labels(segment, WalkRules())

    def shared(self, sign: int) -> list[Event]:
        """What is made once a micro-batch on each stage comes (1) or goes (-1)."""
        source = "made once a micro-batch on each stage, read by its blocks"
        return [
            Event(sign * array.nbytes, Label(Component.ACTIVATIONS, array.name, array.formula, array.nbytes, source))
            for array in self.ledger.shared
        ]

    @cached_property
    def first_block(self) -> int:
        """The place of the first block among the segments: the last to read what all blocks share."""
        return next(place for place, placed in enumerate(self.ledger.segments) if placed.prefix)
