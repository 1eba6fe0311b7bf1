"""What the bytes of a walk are called: kept by whom, in passing for what, and by whose word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from memory.events import Label, gradient_label
from memory.liveness import casts_of, kept_of
from suite.operators import Array, Segment, Weight
from suite.record import Component

BORDER = "stream between blocks"
TRANSIENTS = Component.TRANSIENTS


@dataclass(frozen=True)
class WalkRules:
    """How gradients of parameters are booked, and under which component kept tensors count."""

    kept: Component = Component.ACTIVATIONS
    gradients: Component = Component.GRADIENTS  # TRANSIENTS where a strategy reduces and frees them
    gradient_name: str = "gradients"
    accumulate: bool = False  # gradients exist already: a new one is added to them and freed
    #: weights whose gradient a later segment has begun: name -> did it come through a view?
    awaiting: Mapping[str, bool] = field(default_factory=dict, hash=False)
    #: a pipeline stage's received stream, and its output's gradient: do buffers hold them beyond the pass?
    keeps_input: bool = False
    keeps_seed: bool = False
    #: do all uses of a tied weight lie in one backward pass? Not where two stages have them
    joins_ties: bool = True
    #: weights whose gradient another stage's pass has made already
    found: frozenset[str] = frozenset()

    def waits(self, weight: Weight) -> bool:
        """Does the weight's gradient wait for the segment that owns it?"""
        return self.joins_ties and weight.tied_to is not None

    def adds(self, weight: Weight) -> bool:
        """Is there a gradient of the weight, to which a new one is added?"""
        return self.accumulate or weight.name in self.found


class Labels:
    """Labels of one segment's arrays. What one segment allocates and another frees is called the same by both."""

    def __init__(self, segment: Segment, rules: WalkRules) -> None:
        self.segment = segment
        self.rules = rules

    @cached_property
    def kept(self) -> dict[Array, str]:
        """What outlives the forward pass, and for whom."""
        return kept_of(self.segment)

    @cached_property
    def border(self) -> set[Array | None]:
        """What comes from the segment before, and goes to the next."""
        return {*self.segment.inputs, self.segment.output}

    @cached_property
    def cached(self) -> frozenset[Array]:
        """What autocast's cache holds. It ends with the loss: it outlives the blocks' forward pass, not the loss's."""
        return casts_of(self.segment.body) if self.rules.kept is Component.ACTIVATIONS else frozenset()

    def of_border(self, array: Array) -> Label:
        """What comes from the segment before, or goes to the next."""
        return Label(Component.ACTIVATIONS, BORDER, array.formula, array.nbytes, "kept for the next segment")

    def of_lent(self, array: Array) -> Label:
        """What one segment makes and later ones read."""
        if array.name == BORDER:
            return self.of_border(array)
        source = "made by one segment, read by later ones"
        return Label(Component.ACTIVATIONS, array.name, array.formula, array.nbytes, source)

    def of_made(self, array: Array) -> Label:
        """What a forward pass makes."""
        if array in self.segment.makes:
            return self.of_lent(array)
        if array in self.border:
            return self.of_border(array)
        source = "lives until its last reader has run"
        if array in self.kept:
            source = f"kept for the derivative of {self.kept[array]} (torch derivatives.yaml)"
        elif array in self.cached:
            source = "autocast's cache holds it to the end of the forward pass"
        is_kept = array in self.kept or array in self.cached
        return Label(self.rules.kept if is_kept else TRANSIENTS, array.name, array.formula, array.nbytes, source)

    def of_recomputed(self, array: Array) -> Label:
        """What checkpointing makes again in the backward pass."""
        source = f"checkpointing runs the forward again; kept for {self.kept.get(array, 'the next kernel')}"
        return Label(TRANSIENTS, f"recomputed {self._name(array)}", array.formula, array.nbytes, source)

    def of_gradient(self, array: Array) -> Label:
        """The gradient of an array that is no parameter."""
        source = "autograd: lives until the derivative that reads it has run"
        return Label(TRANSIENTS, f"gradient of {self._name(array)}", array.formula, array.nbytes, source)

    def of_weights(self, weight: Weight, is_last: bool) -> Label:
        """The gradient of a parameter: its .grad if it is the last word on it."""
        component, name = self.rules.gradients, self.rules.gradient_name
        if not is_last:
            component, name = TRANSIENTS, "gradients to be summed"
        elif self.rules.adds(weight):
            component, name = TRANSIENTS, "new gradients, added to the old"
        return gradient_label(component, name, weight.dtype.nbytes)

    def of_workspace(self, name: str, nbytes: int) -> Label:
        """What a kernel needs while it runs."""
        return Label(TRANSIENTS, f"workspace of {name}", "kernel workspace", nbytes, "ATen's kernel")

    def _name(self, array: Array) -> str:
        return BORDER if array in self.border else array.name
