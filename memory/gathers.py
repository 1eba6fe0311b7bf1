"""FSDP2's gathers and reductions on the walk: what is alive around each unit's forward and backward.

A unit is what fully_shard was called on: a block, or the root with what is left. Read off torch's
_fsdp_param_group.py, _fsdp_param.py and _fsdp_collectives.py and held to allocator traces:
- a gather needs its flat output beside the parameters it is copied out into; in forward the flat output is freed only
  when the next unit has been copied out, the last one's when the root's forward ends;
- units gathered ahead hold their flat outputs until their turn;
- resharded to n, a unit keeps n-th parts in the compute type until it is gathered for backward;
- a unit's gradients are copied into a flat reduce-scatter input, which is freed when the next unit reduces;
- a unit's parts (units.py) are gathered, copied out and resharded in turn, and reduced the last one first, with all
  their inputs kept to the next unit's;
- the CPU pads gradients whose rows the ranks do not divide before it copies them together;
- gloo copies each collective's input in passing; NCCL does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from memory.events import Event, Label, Phase, phase_of
from memory.units import Exchange, Micro, Unit
from parallelism.data.fsdp import IMPLICIT_BACKWARD_PREFETCH
from suite.record import Component
from suite.tape import Backend

SOURCE = "FSDP2: torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py"


@dataclass(frozen=True)
class Mark:
    """Where the gathers are: what the next ones depend on, units still to be gathered ahead, and what only grows."""

    state: tuple[tuple[tuple[Unit, ...], ...], int, int]
    ahead: tuple[Unit, ...]
    all_reduced: int


@dataclass
class Gathers:
    """Writes the events of one micro-batch's gathers and reductions, in the order of the calls."""

    exchange: Exchange
    micro: Micro
    gradient: Label
    """what autograd makes: whole gradients in the compute type"""
    events: list[Event] = field(default_factory=list)
    forward_flat: int = 0
    fetched: list[tuple[Unit, ...]] = field(default_factory=list)
    """of each unit that waits for its turn, the parts that were gathered ahead"""
    ahead: list[Unit] = field(default_factory=list)
    reduce_input: int = 0
    all_reduced: int = 0

    def take(self) -> Phase:
        """The events since the last call."""
        phase, self.events = phase_of(self.events), []
        return phase

    def mark(self) -> Mark:
        """Where it is now."""
        return Mark((tuple(self.fetched), self.forward_flat, self.reduce_input), tuple(self.ahead), self.all_reduced)

    def repeat(self, before: Mark, left: int) -> int:
        """How many periods of the `left` that follow are as the one since `before`, and go there: as many as gather the
        same units ahead, if this one ended as it began."""
        after = self.mark()
        if after.state != before.state:
            return 0
        fetched = before.ahead[: len(before.ahead) - len(after.ahead)]
        used, more = len(fetched), 0 if fetched else left
        while fetched and more < left and after.ahead[more * used : (more + 1) * used] == fetched:
            more += 1
        del self.ahead[: more * used]
        self.all_reduced += more * (after.all_reduced - before.all_reduced)
        return more

    # --- gathers ----------------------------------------------------------------------------------------

    def fetch_ahead(self, depth: int, in_backward: bool) -> None:
        """Gather units ahead until so many wait for their turn."""
        while self.ahead and len(self.fetched) < depth:
            self.fetch(self.ahead.pop(0), in_backward)

    def fetch(self, unit: Unit, in_backward: bool = False) -> None:
        """Gather a unit ahead, all its parts."""
        self._fetch_parts(unit.parts, in_backward)

    def begin_backward(self, depth: int) -> None:
        """What the root gathers ahead. FSDP2's own prefetch, of one unit, looks back one part from a unit of a single
        part, as the root is, and finds the last block's last part alone (_fsdp_param_group.py, _backward_prefetch)."""
        if depth == IMPLICIT_BACKWARD_PREFETCH and self.ahead and not self.fetched:
            self._fetch_parts(self.ahead.pop(0).parts[-1:], True)
        self.fetch_ahead(depth, True)

    def _fetch_parts(self, parts: tuple[Unit, ...], in_backward: bool) -> None:
        for part in parts:
            self._fetch(part, in_backward)
        self.fetched.append(parts)

    def _fetch(self, unit: Unit, in_backward: bool) -> None:
        """Gather a part into a flat output, from its shards or from what it was resharded to after forward."""
        exchange = self.exchange
        source = 0
        if in_backward and exchange.reshard_to:
            source = unit.part(exchange) if exchange.casts else 0
        elif exchange.casts or exchange.is_offloaded:
            source = unit.shard(exchange.compute_bytes)
        self._add(source, "shard to be gathered")
        flat = unit.flat(exchange.compute_bytes)
        self._add(flat, "gather output")
        self._gloo(flat, "gathered parameters")
        self._add(-source, "shard to be gathered")

    def use_in_forward(self, unit: Unit) -> None:
        """Before a unit's forward: copy out what was gathered, free the flat output of the unit before."""
        there = self.fetched.pop(0) if self.fetched else ()
        for part in unit.parts:
            if part not in there:
                self._fetch(part, False)
            flat = part.flat(self.exchange.compute_bytes)
            self._copy_out(part, flat)
            self._add(-self.forward_flat, "gather output")
            self.forward_flat = flat

    def _copy_out(self, unit: Unit, flat: int) -> None:
        """Copy out what was gathered; what is cut across by way of a copy in the ranks' order."""
        self._add(flat, "gathered parameters")
        self._pass(
            self.exchange.compute_bytes * sum([item.flat for item in unit.cut_across]), "parameters put together"
        )

    def use(self, unit: Unit, in_backward: bool) -> None:
        """Copy out what was gathered, and free the flat output at once."""
        if in_backward:
            self.use_in_backward(unit)
            return
        self.use_in_forward(unit)
        self.end_forward()

    def use_in_backward(self, unit: Unit) -> None:
        """Before a unit's backward: copy out what was gathered, and free the flat output."""
        there = self.fetched.pop(0) if self.fetched else ()
        for part in unit.parts:
            if part not in there:
                self._fetch(part, True)
            flat = part.flat(self.exchange.compute_bytes)
            self._copy_out(part, flat)
            if self.exchange.reshard_to:
                self._add(-part.part(self.exchange), "parameters resharded to n")
            self._add(-flat, "gather output")

    def reshard_after_forward(self, unit: Unit) -> None:
        """Free a unit's gathered parameters; resharded to n, one by one, each after its part is copied."""
        exchange = self.exchange
        if not exchange.reshard_to:
            self.reshard(unit)
            return
        for parameter in unit.parameters:
            flat = exchange.compute_bytes * parameter.flat
            self._add(flat // exchange.reshard_to, "parameters resharded to n")
            self._add(-flat, "gathered parameters")

    def release_part(self, unit: Unit) -> None:
        """Free what a unit was resharded to."""
        self._add(-unit.part(self.exchange), "parameters resharded to n")

    def end_forward(self) -> None:
        """The root's forward is over: the last flat output goes."""
        self._add(-self.forward_flat, "gather output")
        self.forward_flat = 0

    # --- reductions -------------------------------------------------------------------------------------

    def reduce(self, unit: Unit, is_new: bool = True) -> None:
        """After a unit's backward: reshard; keep the whole gradients, or reduce them and free them. `is_new`: autograd
        has made gradients since the last call."""
        if not unit.parameters:
            return
        for part in reversed(unit.parts):
            self._reduce(part, is_new, is_first=part is unit.parts[-1])

    def _reduce(self, unit: Unit, is_new: bool, is_first: bool) -> None:
        converts, has_kept = self.exchange.converts, self.micro.has_whole
        if converts and has_kept and is_new:
            self._add_to_whole(unit)
        if self.micro.reshards:
            self.reshard(unit)
        if not self.micro.reduces:
            if converts and not has_kept and is_new:
                self._convert_to_whole(unit)
            return
        if is_first:
            self._add(-self.reduce_input, "reduce-scatter input")
            self.reduce_input = 0
        self.reduce_input += unit.flat(self.exchange.reduce_bytes)
        self._add(unit.flat(self.exchange.reduce_bytes), "reduce-scatter input")
        gradient = _label("whole gradients") if converts and has_kept else self.gradient
        element = self.exchange.reduce_bytes if converts and has_kept else self.exchange.compute_bytes
        last = unit.parameters[-1].elements * element
        kept = self._cut_apart(unit, element)
        if self.exchange.backend is Backend.CPU:
            self._lay_out(unit, element)
        self._add(-kept, "gradients cut apart")
        self.events.append(Event(last - unit.gradients(element), gradient))
        self._scatter(unit, Event(-last, gradient))

    def _cut_apart(self, unit: Unit, element: int) -> int:
        """Copy the gradients of what is cut across into the ranks' order, one by one, each in place of the one before;
        the last one's own stays. Bytes of what is then there beside the gradients."""
        sizes = [item.elements * element for item in unit.cut_across]
        for size in sizes[:-1]:
            self._pass(size, "gradients cut apart")
        kept = sizes[-1] if sizes else 0
        self._add(kept, "gradients cut apart")
        return kept

    def _lay_out(self, unit: Unit, element: int) -> None:
        """Copy the gradients into the reduce-scatter's input as the CPU does it (at::_chunk_cat): those whose rows the
        ranks do not divide are padded first, all of them; each is laid out before it is cast."""
        padding = unit.padded_copies(element)
        self._add(padding, "gradients with padded rows")
        if element != self.exchange.reduce_bytes:
            self._pass(unit.largest_padded(element), "gradient laid out in passing")
        self._add(-padding, "gradients with padded rows")

    def _scatter(self, unit: Unit, last_gradient: Event) -> None:
        """Reduce-scatter; over replicas, all-reduce; cast to the parameters' type; add to what is there."""
        exchange, micro = self.exchange, self.micro
        reduced = unit.shard(exchange.reduce_bytes)
        casts = exchange.reduce_bytes != exchange.master_bytes
        is_new = micro.all_reduces and not micro.has_shards and not casts and not exchange.is_offloaded
        is_partial = not micro.all_reduces and not micro.has_partial
        name = "partly reduced gradients" if is_partial else "reduced gradients, before they are cast or added"
        label = _shards(unit, exchange.master_bytes) if is_new else _label(name)
        self.events.append(Event(reduced, label))
        self._gloo(unit.flat(exchange.reduce_bytes), "reduce-scatter input")
        if micro.all_reduces and casts:
            self._cast(unit)
        self.events.append(last_gradient)
        if micro.all_reduces and micro.has_partial:
            self._add(-reduced, "partly reduced gradients")
        if casts and micro.all_reduces and exchange.is_replicated:
            self.all_reduced += reduced  # held until the backward pass ends, so that no later unit takes its place
        elif not is_new and not is_partial:
            self.events.append(Event(-reduced, label))

    def _cast(self, unit: Unit) -> None:
        nbytes = unit.shard(self.exchange.master_bytes)
        is_new = not self.micro.has_shards and not self.exchange.is_offloaded
        label = _shards(unit, self.exchange.master_bytes) if is_new else _label("reduced gradients, added to the old")
        self.events.append(Event(nbytes, label))
        if not is_new:
            self.events.append(Event(-nbytes, label))

    def _add_to_whole(self, unit: Unit) -> None:
        """Add each new gradient to the one that is kept; the CPU casts it first."""
        for parameter in unit.parameters:
            if self.exchange.backend is Backend.CPU:
                self._pass(parameter.elements * self.exchange.reduce_bytes, "gradient cast in passing")
            self.events.append(Event(-parameter.elements * self.exchange.compute_bytes, self.gradient))

    def _convert_to_whole(self, unit: Unit) -> None:
        for parameter in unit.parameters:
            self._add(parameter.elements * self.exchange.reduce_bytes, "whole gradients")
            self.events.append(Event(-parameter.elements * self.exchange.compute_bytes, self.gradient))

    def end_backward(self) -> None:
        """The root has reduced: the last input goes, and what was all-reduced before it was cast."""
        self._add(-self.reduce_input, "reduce-scatter input")
        self._add(-self.all_reduced, "reduced gradients, before they are cast or added")
        self.reduce_input = self.all_reduced = 0

    # --- events -----------------------------------------------------------------------------------------

    def reshard(self, unit: Unit) -> None:
        """Free a unit's gathered parameters."""
        self._add(-unit.flat(self.exchange.compute_bytes), "gathered parameters")

    def _gloo(self, nbytes: int, what: str) -> None:
        if self.exchange.backend is Backend.CPU:
            self._pass(nbytes, f"gloo's copy of the {what}")

    def _pass(self, nbytes: int, name: str) -> None:
        self._add(nbytes, name)
        self._add(-nbytes, name)

    def _add(self, nbytes: int, name: str) -> None:
        if nbytes:
            self.events.append(Event(nbytes, _label(name)))


@cache
def _label(name: str) -> Label:
    return Label(Component.GATHERED, name, "the unit's parameters", 0, SOURCE)


def _shards(unit: Unit, element: int) -> Label:
    formula = f"parameters*{element} / ranks, rows padded"
    return Label(Component.GRADIENTS, "gradients", formula, unit.shard(element), SOURCE)
