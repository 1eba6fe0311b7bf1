"""A stage's passes where FSDP2 shards it.

Read off torch/distributed/pipelining/stage.py (backward_maybe_with_nosync, perform_reduce_grad) and schedules.py
(UNSHARD, RESHARD), and held to allocator traces: a forward pass leaves each block as the layout says, a backward pass
leaves it whole; gradients stay whole until they are reduced, all units in forward order, after the stage's last
backward pass. Schedules of several stages a rank gather all units of a stage before it is used, and copy them out when
it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from parallelism.schedules.gathers import Held

from memory.events import Event, Label, Phase, phase_of
from memory.gathers import Gathers
from memory.stage_walk import StageWalk
from memory.units import Exchange, Micro, Unit, unit_of
from suite.layout import Layout
from suite.operators import Placed


@dataclass(frozen=True)
class Sharding:
    """What a rank has of a stage: its blocks' parameters, the root's; units that are gathered but not copied out; and
    gradients, as autograd makes them (new) and, where those are converted, kept for the reduction."""

    blocks: Held = Held.SHARD
    root: Held = Held.SHARD
    is_fetched: bool = False
    has_new: bool = False
    has_kept: bool = False


#: events before the loss, events from there on, what is left
Passed = tuple[list[Event], list[Event], Sharding]


class ShardedStage:
    """Writes the passes of one stage; `gradients` is what autograd makes."""

    def __init__(self, walk: StageWalk, layout: Layout, exchange: Exchange, gradients: Label) -> None:
        self.walk = walk
        self.layout = layout
        self.exchange = exchange
        self.gradients = gradients
        self.state = Sharding()
        self.made: dict[tuple[str, Sharding], tuple[Phase, Phase, Sharding]] = {}
        segments = walk.ledger.segments
        self.units = {
            placed.segment: unit_of(placed.segment.weights, layout.shard_ranks) for placed in segments if placed.prefix
        }
        rest = [weight for placed in segments if not placed.prefix for weight in placed.segment.weights]
        self.root = unit_of(rest, layout.shard_ranks)
        self.blocks = [self.units[placed.segment] for placed in segments if placed.prefix]
        freed = layout.reshard_after_forward
        self.after_forward = Held.SHARD if freed is True else Held.PART if freed else Held.WHOLE

    def gather(self) -> Phase:
        """Gather what is not there."""
        return self._pass("gather", self._gather)[0]

    def release(self) -> Phase:
        """Let go of every unit's parameters."""
        return self._pass("release", self._release)[0]

    def forward(self) -> tuple[Phase, Phase]:
        """Gather, run, reshard block after block."""
        return self._pass("forward", self._forward)

    def backward(self) -> Phase:
        """Gather and run block after block; keep the gradients."""
        return self._pass("backward", self._backward)[0]

    def inputs(self) -> Phase:
        """The same without gradients of weights; those of the last such pass are converted now."""
        return self._pass("inputs", self._inputs)[0]

    def weights(self) -> Phase:
        """Gradients of weights, added in the type that they are made in."""
        return self._pass("weights", self._weights)[0]

    def reduce(self) -> Phase:
        """Reduce every unit's gradients, and reshard it."""
        return self._pass("reduce", self._reduce)[0]

    def _pass(self, name: str, write: Callable[[Sharding], Passed]) -> tuple[Phase, Phase]:
        key = name, self.state
        if key not in self.made:
            body, loss, left = write(self.state)
            self.made[key] = phase_of(body), phase_of(loss), left
        body_phase, loss_phase, self.state = self.made[key]
        return body_phase, loss_phase

    # --- parameters -------------------------------------------------------------------------------------

    def _missing(self, state: Sharding) -> list[tuple[Unit, Held]]:
        units = [(self.root, state.root), *((unit, state.blocks) for unit in self.blocks)]
        return [(unit, held) for unit, held in units if held is not Held.WHOLE and unit.parameters]

    def _gather(self, state: Sharding) -> Passed:
        gathers = self._gathers(Micro())
        for unit, held in self._missing(state):
            gathers.fetch(unit, held is Held.PART)
        return gathers.events, [], replace(state, is_fetched=True)

    def _copied_out(self, gathers: Gathers, state: Sharding) -> Sharding:
        """Before a pass: copy out what was gathered ahead."""
        if not state.is_fetched:
            return state
        missing = self._missing(state)
        gathers.fetched = [unit for unit, _ in missing]
        for unit, held in missing:
            gathers.use(unit, held is Held.PART)
        return replace(state, blocks=Held.WHOLE, root=Held.WHOLE, is_fetched=False)

    def _release(self, state: Sharding) -> Passed:
        gathers = self._gathers(Micro())
        self._reshard_all(gathers, state)
        return gathers.events, [], replace(state, blocks=Held.SHARD, root=Held.SHARD)

    def _reshard_all(self, gathers: Gathers, state: Sharding) -> None:
        for unit, held in [(self.root, state.root), *((unit, state.blocks) for unit in self.blocks)]:
            if held is Held.WHOLE:
                gathers.reshard(unit)
            elif held is Held.PART:
                gathers.release_part(unit)

    def _fetch(self, gathers: Gathers, ahead: list[Unit], depth: int, in_backward: bool) -> None:
        while ahead and len(gathers.fetched) < depth:
            gathers.fetch(ahead.pop(0), in_backward)

    # --- passes -----------------------------------------------------------------------------------------

    def _forward(self, state: Sharding) -> Passed:
        gathers = self._gathers(Micro())
        state = self._copied_out(gathers, state)
        gathers.events += self.walk.shared(1)
        if state.root is not Held.WHOLE and self.root.parameters:
            gathers.use_in_forward(self.root)
        is_missing = state.blocks is not Held.WHOLE
        ahead = list(self.blocks) if is_missing else []
        self._fetch(gathers, ahead, self.layout.forward_prefetch, False)
        body: list[Event] | None = None
        for placed, walk in self.walk.segments(False):
            if body is None and self.walk.is_loss(placed):
                body, gathers.events = gathers.events, []
            unit = self.units.get(placed.segment) if placed.prefix else None
            if unit is not None and is_missing:
                if not gathers.fetched:
                    ahead.pop(0)
                gathers.use_in_forward(unit)
                self._fetch(gathers, ahead, self.layout.forward_prefetch, False)
            gathers.events += walk.forward.events
            if unit is not None and self.after_forward is not Held.WHOLE:
                gathers.reshard_after_forward(unit)
        gathers.end_forward()
        left = replace(state, blocks=self.after_forward, root=Held.WHOLE)
        return (gathers.events, [], left) if body is None else (body, gathers.events, left)

    def _backward(self, state: Sharding) -> Passed:
        adds = state.has_new if self.exchange.converts else state.has_kept
        walks = list(self.walk.segments(adds))
        passes = [(placed, list(walk.backward.events)) for placed, walk in walks]
        passes[self.walk.first_block][1].extend(self.walk.shared(-1))
        gathers, state = self._run_back(state, passes, True)
        return gathers.events, [], replace(state, has_new=False, has_kept=True)

    def _inputs(self, state: Sharding) -> Passed:
        walks = self.walk.split_segments(False)
        placed = self.walk.ledger.segments
        passes = [(each, list(walk.inputs.events)) for each, walk in zip(placed, walks, strict=True)]
        gathers, state = self._run_back(state, passes, state.has_new)
        gathers.events += walks[-1].above.events
        if not self.exchange.converts:
            return gathers.events, [], state
        return gathers.events, [], replace(state, has_new=False, has_kept=state.has_kept or state.has_new)

    def _run_back(
        self, state: Sharding, passes: list[tuple[Placed, list[Event]]], is_new: bool
    ) -> tuple[Gathers, Sharding]:
        gathers = self._gathers(Micro(reduces=False, reshards=False, has_whole=state.has_kept))
        state = self._copied_out(gathers, state)
        is_missing = state.blocks is not Held.WHOLE
        ahead = self.blocks[::-1] if is_missing else []
        self._fetch(gathers, ahead, self.layout.backward_prefetch, True)
        for placed, events in reversed(passes):
            unit = self.units.get(placed.segment) if placed.prefix else None
            if unit is not None and is_missing:
                if not gathers.fetched:
                    ahead.pop(0)
                gathers.use_in_backward(unit)
                self._fetch(gathers, ahead, self.layout.backward_prefetch, True)
            gathers.events += events
            if unit is not None:
                gathers.reduce(unit, is_new)
        gathers.reduce(self.root, is_new)
        return gathers, replace(state, blocks=Held.WHOLE, root=Held.WHOLE)

    def _weights(self, state: Sharding) -> Passed:
        adds = state.has_new if self.exchange.converts else state.has_kept
        gathers = self._gathers(Micro())
        state = self._copied_out(gathers, state)
        gathers.events += self.walk.weights(adds).events
        if self.exchange.converts:
            return gathers.events, [], replace(state, has_new=True)
        return gathers.events, [], replace(state, has_kept=True)

    def _reduce(self, state: Sharding) -> Passed:
        gathers = self._gathers(Micro(has_whole=state.has_kept, reshards=False))
        for unit, held in [(self.root, state.root), *((unit, state.blocks) for unit in self.blocks)]:
            if held is Held.WHOLE:
                gathers.reshard(unit)
            elif held is Held.PART:
                gathers.release_part(unit)
            gathers.reduce(unit, state.has_new)
        gathers.end_backward()
        return gathers.events, [], Sharding()

    def _gathers(self, micro: Micro) -> Gathers:
        return Gathers(self.exchange, micro, self.gradients)
