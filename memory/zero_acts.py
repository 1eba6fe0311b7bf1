"""What DeepSpeed's engine allocates in a step, call by call: what all stages share, and stage 0."""

from __future__ import annotations

from dataclasses import dataclass, field

from memory.events import Act, Event, Label, Phase, phase_of
from memory.zero_rank import Rank
from parallelism.zero.config import Parameter
from suite.operators import Placed, Weight
from suite.record import Component

FP32 = 4
RUNTIME = "DeepSpeed 0.19: deepspeed/runtime/"
#: what autograd makes, and a stage reduces and frees
WHOLE = "gradients before they are reduced"


@dataclass
class Acts:
    """Writes the events of a step, in the order of the calls. Stage 0 and what all stages share."""

    at: Rank
    events: list[Event] = field(default_factory=list)
    bucket: list[Parameter] = field(default_factory=list)

    #: does autograd add a micro-batch's gradients to those of the one before?
    accumulates = True
    #: are the whole gradients those that the optimizer reads?
    keeps_whole = True

    def weave(self, phase: Phase, placed: Placed) -> Phase:
        """A segment's stretch with this strategy's events where they happen."""
        done = 0
        for use in phase.uses:
            self.events += phase.events[done : use.at]
            done = use.at
            self.act(use.act, use.weights, placed)
        self.events += phase.events[done:]
        return self.take()

    def act(self, act: Act, weights: tuple[Weight, ...], placed: Placed) -> None:
        """Something happens to weights."""

    def end_backward(self, is_first: bool, is_last: bool) -> Phase:
        """A micro-batch's backward pass is over. Last: all gradients are joined for the all-reduce."""
        if is_last:
            elements = [item.elements for item in self.at.by_name.values()]
            if len(elements) > 1:
                self._pass(sum(elements) * self.at.size, "gradients joined to be all-reduced", "parameters*{size}")
        return self.take()

    def update(self) -> Phase:
        """Clip, update, spread the new parameters. bf16: every fp32 gradient at once."""
        if self.at.size != FP32:
            elements = sum(item.elements for item in self.at.by_name.values())
            self._pass(elements * FP32, "fp32 gradients of the masters", "parameters*4")
        return self.take()

    def take(self) -> Phase:
        """The events since the last call."""
        phase, self.events = phase_of(self.events), []
        return phase

    def _pass(self, nbytes: int, name: str, formula: str) -> None:
        self._add(nbytes, name, formula)
        self._add(-nbytes, name, formula)

    def _add(self, nbytes: int, name: str, formula: str, component: Component = Component.TRANSIENTS) -> None:
        if nbytes:
            label = Label(component, name, formula.format(size=self.at.size), 0, self.source)
            self.events.append(Event(nbytes, label))

    def _free(self, item: Parameter) -> None:
        """A whole gradient goes."""
        self._add(-item.elements * self.at.size, WHOLE, "parameters reached*{size}")

    def _put(self, item: Parameter) -> None:
        """A gradient is copied into the bucket, reduced first if it would not fit in it; a larger one waits alone."""
        if self.bucket and sum(other.elements for other in self.bucket) + item.elements > self.at.limit:
            self._flush()
        self.bucket.append(item)
        if item.elements <= self.at.limit:
            self._free(item)

    def _flush(self) -> None:
        """Reduce the bucket. Stage 0 has none."""

    @property
    def source(self) -> str:
        """Where the rules come from."""
        return RUNTIME + "engine.py"
