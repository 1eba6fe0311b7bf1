"""FSDP2's gathers and reductions on the walk: what is alive around each unit's forward and backward.

A unit is what fully_shard was called on: a block, or the root with what is left. Read off torch's
_fsdp_param_group.py and _fsdp_collectives.py and held to allocator traces:
- a gather needs its flat output beside the parameters it is copied out into; the flat output is freed only
  when the next unit has been gathered, the last one's when the root's forward ends;
- in backward the next unit's flat output is fetched ahead while this one computes;
- a unit's gradients are copied into a flat reduce-scatter input, which is freed when the next unit reduces;
- gloo copies each collective's input in passing; NCCL does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from memory.events import Event, Label, Phase, phase_of
from memory.state import shape_of
from parallelism.fsdp import padded_elements
from suite.operators import Weight
from suite.record import Component
from suite.tape import Backend

SOURCE = "FSDP2: torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py"
REDUCE_BYTES = 4  # gradients are reduced in fp32


@dataclass(frozen=True)
class Unit:
    """A group of parameters that are gathered together, in bytes on each rank."""

    flat: int  # gathered, in the compute type: every rank's padded shard
    shard: int  # this rank's part of it
    gradients: int  # whole gradients, in the compute type
    last_gradient: int  # the last parameter's, freed last
    largest_gradient: int
    reduce_input: int
    reduced: int  # this rank's part of the reduced gradients


def unit_of(weights: Sequence[Weight], ranks: int, compute_bytes: int) -> Unit:
    """The unit of these parameters over so many ranks."""
    owned = [weight for weight in weights if not weight.tied_to]
    padded = sum(padded_elements(shape_of(weight), ranks) for weight in owned)
    gradients = [weight.elements * compute_bytes for weight in owned]
    return Unit(
        flat=ranks * padded * compute_bytes,
        shard=padded * compute_bytes,
        gradients=sum(gradients),
        last_gradient=gradients[-1],
        largest_gradient=max(gradients),
        reduce_input=ranks * padded * REDUCE_BYTES,
        reduced=padded * REDUCE_BYTES,
    )


@dataclass
class Gathers:
    """Writes the events of one micro-batch's gathers and reductions, in the order of the calls."""

    backend: Backend
    is_mixed: bool
    accumulate: bool
    gradient: Label
    events: list[Event] = field(default_factory=list)
    forward_flat: int = 0
    fetched: Unit | None = None
    reduce_input: int = 0

    def take(self) -> Phase:
        """The events since the last call."""
        phase, self.events = phase_of(self.events), []
        return phase

    def gather(self, unit: Unit) -> None:
        """Before a unit's forward: gather, copy out, free the flat output of the unit before."""
        self._fetch(unit)
        self._add(unit.flat, "gathered parameters")
        self._add(-self.forward_flat, "gather output")
        self.forward_flat = unit.flat

    def reshard(self, unit: Unit) -> None:
        """Free a unit's gathered parameters."""
        self._add(-unit.flat, "gathered parameters")

    def end_forward(self) -> None:
        """The root's forward is over: the last flat output goes."""
        self._add(-self.forward_flat, "gather output")
        self.forward_flat = 0

    def fetch_ahead(self, unit: Unit) -> None:
        """In backward, fetch the flat output of the unit that comes next."""
        self._fetch(unit)
        self.fetched = unit

    def use_fetched(self) -> None:
        """Before a unit's backward: copy what was fetched out, and free it."""
        if self.fetched is not None:
            self._add(self.fetched.flat, "gathered parameters")
            self._add(-self.fetched.flat, "gather output")
            self.fetched = None

    def reduce(self, unit: Unit) -> None:
        """After a unit's backward: reshard, copy the gradients together, reduce-scatter them, free them."""
        self.reshard(unit)
        self._add(-self.reduce_input, "reduce-scatter input")
        self._add(unit.reduce_input, "reduce-scatter input")
        if self.is_mixed and self.backend is Backend.CPU:
            self._pass(unit.largest_gradient, "gradient laid out in passing")
        self._gradients(unit.last_gradient - unit.gradients)
        reduced = Component.GATHERED if self.accumulate else Component.GRADIENTS
        name = "reduced gradients, added to the old" if self.accumulate else "gradients"
        label = Label(reduced, name, "parameters*4 / ranks, rows padded", unit.reduced, SOURCE)
        self.events.append(Event(unit.reduced, label))
        if self.backend is Backend.CPU:
            self._pass(unit.reduce_input, "gloo's copy of the reduce-scatter input")
        self._gradients(-unit.last_gradient)
        if self.accumulate:
            self.events.append(Event(-unit.reduced, label))
        self.reduce_input = unit.reduce_input

    def end_backward(self) -> None:
        """The root has reduced: the last input goes."""
        self._add(-self.reduce_input, "reduce-scatter input")
        self.reduce_input = 0

    def _fetch(self, unit: Unit) -> None:
        if self.is_mixed:
            self._add(unit.shard, "shard in the compute type")
        self._add(unit.flat, "gather output")
        if self.backend is Backend.CPU:
            self._pass(unit.flat, "gloo's copy of the gathered parameters")
        if self.is_mixed:
            self._add(-unit.shard, "shard in the compute type")

    def _gradients(self, nbytes: int) -> None:
        self.events.append(Event(nbytes, self.gradient))

    def _pass(self, nbytes: int, name: str) -> None:
        self._add(nbytes, name)
        self._add(-nbytes, name)

    def _add(self, nbytes: int, name: str) -> None:
        if nbytes:
            self.events.append(Event(nbytes, _label(name)))


@cache
def _label(name: str) -> Label:
    return Label(Component.GATHERED, name, "the unit's parameters", 0, SOURCE)
