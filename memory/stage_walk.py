"""A pipeline stage's passes over one micro-batch: its segments' walks end to end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

from memory.events import Chain, Event, Label, Phase, phase_of
from memory.labels import Labels, WalkRules
from memory.micro_batch import MicroScripts, plain_scripts
from memory.scripts import Form, ScriptWriter, form_of
from memory.split_walk import SplitWalk, walk_split
from memory.walk import SegmentWalk, walk_segment
from parallelism.schedules.stages import Stage
from suite.memo import Memo
from suite.operators import Array, Ledger, Segment
from suite.record import Component

#: a segment, and whether it is its stage's first and last: what tells walks apart
Kind = tuple[Segment, bool, bool]


class StageWalk:
    """The passes of one stage. `found` are weights whose gradient another stage of the rank has made before;
    `gradients` is what gradients are called where a strategy reduces and frees them."""

    def __init__(
        self, ledger: Ledger, stage: Stage, found: frozenset[str], gradients: Label | None, memo: Memo
    ) -> None:
        self.gradients = gradients
        self.ledger = ledger
        self.stage = stage
        self.found = found
        self.memo = memo
        last = len(ledger.segments) - 1
        kinds = [(placed.segment, place == 0, place == last) for place, placed in enumerate(ledger.segments)]
        self.kinds: tuple[Kind, ...] = tuple(dict.fromkeys(kinds))
        self.form: Form = memo.same(form_of(ledger, kinds))

    @cached_property
    def stream(self) -> Array:
        """What a block takes and makes."""
        return self.ledger.segments[self.form.blocks.start].segment.inputs[0]

    @cached_property
    def output(self) -> Label:
        """What the stage's output is called."""
        return self._names.of_border(self.stream)

    @cached_property
    def input_gradient(self) -> Label:
        """What the gradient of the stage's input is called."""
        return self._names.of_gradient(self.stream)

    # --- whole passes -----------------------------------------------------------------------------------

    def forward(self) -> tuple[Chain, Chain]:
        """A forward pass to the end of the blocks, and of the head with the loss; then autocast ends."""
        slots, scripts = self.slots(False), self._scripts
        if self.form.loss < len(self.form.pattern):
            return Chain(scripts.forward, slots), Chain(scripts.loss, slots)
        return Chain(scripts.forward + scripts.loss, slots), Chain(())

    def backward(self, accumulate: bool) -> Chain:
        """A backward pass that makes the gradients, or adds to them."""
        return Chain(self._scripts.backward, self.slots(accumulate))

    def inputs(self) -> Chain:
        """A backward pass that makes the gradient of the stage's input alone."""
        writer, walks = ScriptWriter(), self.splits(False)
        back = self.form.back
        writer.over(back, lambda place: writer.put(walks[back.pattern[place]].inputs))
        writer.put(walks[self.form.pattern[-1]].above)
        return Chain(writer.cut())

    def weights(self, accumulate: bool) -> Chain:
        """The pass that follows it: it makes the gradients of the weights, or adds to them.

        What came of the first pass goes when the next operator's gradients are about to be made; those that are added
        to others, when they are made.
        """
        walks, pattern = self.splits(accumulate), self.form.pattern
        writer = ScriptWriter()
        seed = added = Phase()

        def write(place: int) -> None:
            nonlocal seed, added
            for group in walks[pattern[place]].weights:
                for part in (seed, group.made, added):
                    writer.put(part)
                seed, added = group.seed, group.added

        writer.over(self.form, write, lambda: (seed, added))
        writer.put(seed)
        writer.put(added)
        writer.over(self.form, lambda place: writer.put(walks[pattern[place]].left))
        writer.put(phase_of(self._shared(-1)))
        return Chain(writer.cut())

    # --- segments ---------------------------------------------------------------------------------------

    def slots(self, accumulate: bool) -> Sequence[Phase]:
        """What fills a micro-batch's scripts; `accumulate`: gradients are there to be added to."""
        return self.memo.once(("slots", self.memo.name(self), accumulate), lambda: self._filled(
            part
            for kind in self.kinds
            for walk in (self._walk(kind, accumulate),)
            for part in (walk.forward, walk.uncache, walk.backward)
        ))  # fmt: skip

    def splits(self, accumulate: bool) -> Sequence[SplitWalk]:
        """The walks of a backward pass in two, of each kind of segment."""
        key = "splits", self.memo.name(self), accumulate
        return self.memo.once(key, lambda: [self._split(kind, accumulate) for kind in self.kinds])

    def _filled(self, parts: Iterable[Phase]) -> list[Phase]:
        return [phase_of(self._shared(1)), phase_of(self._shared(-1)), *parts]

    def _walk(self, kind: Kind, accumulate: bool) -> SegmentWalk:
        segment, rules = kind[0], self._rules(kind, accumulate)
        return self.memo.once(("walk", segment, rules), lambda: walk_segment(segment, rules))

    def _split(self, kind: Kind, accumulate: bool) -> SplitWalk:
        segment, rules, is_top = kind[0], self._rules(kind, accumulate), kind[2]
        return self.memo.once(("split", segment, rules, is_top), lambda: walk_split(segment, rules, is_top))

    def _rules(self, kind: Kind, accumulate: bool) -> WalkRules:
        segment, is_first, is_last = kind
        rules = WalkRules(
            kept=Component.LOSS if segment.name in self.ledger.loss else Component.ACTIVATIONS,
            accumulate=accumulate,
            keeps_input=is_first and not self.stage.has_embedding,
            keeps_seed=is_last and not self.stage.has_head,
            joins_ties=False,
            found=self.found,
        )
        if self.gradients is None:
            return rules
        return replace(rules, gradients=self.gradients.component, gradient_name=self.gradients.name)

    @cached_property
    def _scripts(self) -> MicroScripts:
        key = "scripts", self.memo.name(self.form)
        return self.memo.once(key, lambda: plain_scripts(self.form))

    @cached_property
    def _names(self) -> Labels:
        return Labels(self.ledger.segments[self.form.blocks.start].segment, WalkRules())

    def _shared(self, sign: int) -> list[Event]:
        """What is made once a micro-batch on each stage comes (1) or goes (-1)."""
        source = "made once a micro-batch on each stage, read by its blocks"
        return [
            Event(sign * array.nbytes, Label(Component.ACTIVATIONS, array.name, array.formula, array.nbytes, source))
            for array in self.ledger.shared
        ]
