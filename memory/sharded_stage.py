"""A stage's passes where FSDP2 shards it.

Read off torch/distributed/pipelining/stage.py (backward_maybe_with_nosync, perform_reduce_grad) and schedules.py
(UNSHARD, RESHARD), and held to allocator traces: a forward pass leaves each block as the layout says, a backward pass
leaves it whole; gradients stay whole until they are reduced, all units in forward order, after the stage's last
backward pass. Schedules of several stages a rank gather all units of a stage before it is used, and copy them out when
it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from memory.events import Chain, Label, Phase, Script
from memory.gathers import Gathers
from memory.micro_batch import BACKWARD, FORWARD, SLOTS
from memory.scripts import SHARED_FREED, SHARED_MADE, SLOTS_BEFORE, Form, ScriptWriter
from memory.stage_passes import Doing, Progress
from memory.stage_walk import StageWalk
from memory.units import Exchange, Micro, Unit, unit_of
from parallelism.schedules.gathers import Held
from suite.layout import Layout
from suite.memo import Memo


def held_after_forward(layout: Layout) -> Held:
    """What a forward pass leaves of a block's parameters."""
    freed = layout.reshard_after_forward
    return Held.SHARD if freed is True else Held.PART if freed else Held.WHOLE


@dataclass(frozen=True)
class Sharding:
    """What a rank has of a stage: its blocks' parameters, the root's; units that are gathered but not copied out; and
    gradients, as autograd makes them (new) and, where those are converted, kept for the reduction."""

    after_forward: Held  # what a forward pass leaves of a block
    converts: bool  # are gradients reduced in another type than they are computed in?
    blocks: Held = Held.SHARD
    root: Held = Held.SHARD
    is_fetched: bool = False
    has_new: bool = False
    has_kept: bool = False

    def after(self, doing: Doing) -> Sharding:
        """What is left when that is done."""
        if doing is Doing.GATHER:
            return replace(self, is_fetched=True)
        if doing is Doing.RELEASE:
            return replace(self, blocks=Held.SHARD, root=Held.SHARD)
        if doing is Doing.REDUCE:
            return Sharding(self.after_forward, self.converts)
        if doing is Doing.FORWARD:
            return replace(self.copied_out(), blocks=self.after_forward, root=Held.WHOLE)
        if doing is Doing.WEIGHTS:
            left = self.copied_out()
            return replace(left, has_new=True) if self.converts else replace(left, has_kept=True)
        left = replace(self, blocks=Held.WHOLE, root=Held.WHOLE, is_fetched=False)
        if doing is Doing.BACKWARD:
            return replace(left, has_new=False, has_kept=True)
        return replace(left, has_new=False, has_kept=self.has_kept or self.has_new) if self.converts else left

    def copied_out(self) -> Sharding:
        """What it is when a pass begins."""
        if not self.is_fetched:
            return self
        return replace(self, blocks=Held.WHOLE, root=Held.WHOLE, is_fetched=False)

    @property
    def adds(self) -> bool:
        """Does autograd add to gradients that it finds?"""
        return self.has_new if self.converts else self.has_kept


@dataclass(frozen=True)
class StageGathering:
    """How FSDP2 gathers and reduces a stage's units."""

    exchange: Exchange
    gradients: Label  # what autograd makes
    forward_prefetch: int
    backward_prefetch: int
    ranks: tuple[int, int]  # that a unit is sharded over, and its experts


class ShardedStage:
    """A stage whose parameters and gradients FSDP2 shards."""

    def __init__(self, walk: StageWalk, gathering: StageGathering, memo: Memo) -> None:
        self.walk = walk
        self.gathering = gathering
        self.memo = memo
        self.made: dict[tuple[Doing, Progress], tuple[Chain, Chain]] = {}
        segments, form = walk.ledger.segments, walk.form
        blocks = {form.pattern[place]: segments[place].segment.weights for place in form.blocks}
        rest = [weight for placed in segments if not placed.prefix for weight in placed.segment.weights]
        units = tuple((kind, unit_of(weights, *gathering.ranks)) for kind, weights in blocks.items())
        self.units = memo.same((units, unit_of(rest, *gathering.ranks)))
        self.key = "stage", memo.name(form), memo.name(self.units), memo.name(memo.same(gathering))

    def passes(self, doing: Doing, progress: Progress) -> tuple[Chain, Chain]:
        """What it allocates, and what from the head on."""
        key = doing, progress
        if key not in self.made:
            assert isinstance(progress, Sharding)
            self.made[key] = self._pass(doing, progress)
        return self.made[key]

    def _pass(self, doing: Doing, state: Sharding) -> tuple[Chain, Chain]:
        form = self.walk.form
        units, root = self.units
        body, loss = self.memo.once(
            (*self.key, doing, state),
            lambda: _Writer(form, dict(units), root, self.gathering, state).scripts(doing),
        )
        slots: Sequence[Phase]
        if doing is Doing.INPUTS:
            walks = self.walk.splits(False)
            inputs = [walk.inputs for walk in walks for _ in range(SLOTS)]
            slots = [*self.walk.slots(False)[:SLOTS_BEFORE], *inputs, walks[form.pattern[-1]].above]
            return Chain(body, slots), Chain(loss)
        if doing is Doing.WEIGHTS:
            return Chain(body, [self.walk.weights(state.adds)]), Chain(loss)
        slots = self.walk.slots(state.adds if doing is Doing.BACKWARD else False)
        return Chain(body, slots), Chain(loss, slots)


class _Writer:
    """Writes one pass: the stage's slots, and the gathers and reductions between them."""

    def __init__(
        self, form: Form, units: Mapping[int, Unit], root: Unit, gathering: StageGathering, state: Sharding
    ) -> None:
        self.form = form
        self.units = units
        self.blocks = [units[form.pattern[place]] for place in form.blocks]
        self.root = root
        self.gathering = gathering
        self.state = state
        self.gathers = self._gathers(Micro())
        self.writer = ScriptWriter(self.gathers)

    def scripts(self, doing: Doing) -> tuple[Script, Script]:
        """The pass to the end of the blocks, and from the head on."""
        write: Mapping[Doing, Callable[[], Script]] = {
            Doing.GATHER: self._gather,
            Doing.RELEASE: self._release,
            Doing.BACKWARD: self._backward,
            Doing.INPUTS: self._inputs,
            Doing.WEIGHTS: self._weights,
            Doing.REDUCE: self._reduce,
        }
        return self._forward() if doing is Doing.FORWARD else (write[doing](), ())

    def _gathers(self, micro: Micro) -> Gathers:
        return Gathers(self.gathering.exchange, micro, self.gathering.gradients)

    # --- parameters -------------------------------------------------------------------------------------

    def _held(self) -> list[tuple[Unit, Held]]:
        return [(self.root, self.state.root), *((unit, self.state.blocks) for unit in self.blocks)]

    def _missing(self) -> list[tuple[Unit, Held]]:
        return [(unit, held) for unit, held in self._held() if held is not Held.WHOLE and unit.parameters]

    def _gather(self) -> Script:
        for unit, held in self._missing():
            self.gathers.fetch(unit, held is Held.PART)
        return self.writer.cut()

    def _release(self) -> Script:
        for unit, held in self._held():
            self._let_go(unit, held)
        return self.writer.cut()

    def _let_go(self, unit: Unit, held: Held) -> None:
        if held is Held.WHOLE:
            self.gathers.reshard(unit)
        elif held is Held.PART:
            self.gathers.release_part(unit)

    def _copy_out(self) -> None:
        """Before a pass: copy out what was gathered ahead."""
        if self.state.is_fetched:
            missing = self._missing()
            self.gathers.fetched = [unit.parts for unit, _ in missing]
            for unit, held in missing:
                self.gathers.use(unit, held is Held.PART)
        self.state = self.state.copied_out()

    # --- passes -----------------------------------------------------------------------------------------

    def _forward(self) -> tuple[Script, Script]:
        form, end = self.form, len(self.form.pattern)
        self._copy_out()
        self.writer.put(SHARED_MADE)
        if self.state.root is not Held.WHOLE and self.root.parameters:
            self.gathers.use_in_forward(self.root)
        if self.state.blocks is not Held.WHOLE:
            self.gathers.ahead = list(self.blocks)
        self.gathers.fetch_ahead(self.gathering.forward_prefetch, False)
        self.writer.over(replace(form, pattern=form.pattern[: form.loss]), self._run)
        if form.loss == end:
            self.gathers.end_forward()
            return self.writer.cut(), ()
        body = self.writer.cut()
        for place in range(form.loss, end):
            self._run(place)
        self.gathers.end_forward()
        return body, self.writer.cut()

    def _run(self, place: int) -> None:
        """A segment's forward pass."""
        unit = self._unit(place)
        if unit is not None and self.state.blocks is not Held.WHOLE:
            self._take_turn()
            self.gathers.use_in_forward(unit)
            self.gathers.fetch_ahead(self.gathering.forward_prefetch, False)
        self._put(place, FORWARD)
        if unit is not None and self.state.after_forward is not Held.WHOLE:
            self.gathers.reshard_after_forward(unit)

    def _backward(self) -> Script:
        self._run_back(True, self.form.blocks.start)
        return self.writer.cut()

    def _inputs(self) -> Script:
        self._run_back(self.state.has_new, -1)
        self.writer.put(SLOTS_BEFORE + SLOTS * (max(self.form.pattern) + 1))
        return self.writer.cut()

    def _run_back(self, is_new: bool, frees_shared: int) -> None:
        """Every segment backwards; after that at `frees_shared` what all share goes."""
        gathers = self.gathers = self._gathers(Micro(reduces=False, reshards=False, has_whole=self.state.has_kept))
        self.writer = ScriptWriter(gathers)
        self._copy_out()
        is_missing = self.state.blocks is not Held.WHOLE
        gathers.ahead = self.blocks[::-1] if is_missing else []
        gathers.begin_backward(self.gathering.backward_prefetch)
        last = len(self.form.pattern) - 1

        def derive(index: int) -> None:
            place = last - index
            unit = self._unit(place)
            if unit is not None and is_missing:
                self._take_turn()
                gathers.use_in_backward(unit)
                gathers.fetch_ahead(self.gathering.backward_prefetch, True)
            self._put(place, BACKWARD)
            if place == frees_shared:
                self.writer.put(SHARED_FREED)
            if unit is not None:
                gathers.reduce(unit, is_new)

        back = self.form.back
        self.writer.over(replace(back, blocks=back.blocks[:-1]), derive)  # the last to read what all share is by itself
        gathers.reduce(self.root, is_new)

    def _weights(self) -> Script:
        self._copy_out()
        self.writer.put(0)
        return self.writer.cut()

    def _reduce(self) -> Script:
        self.gathers = self._gathers(Micro(has_whole=self.state.has_kept, reshards=False))
        self.writer = ScriptWriter(self.gathers)
        self._let_go(self.root, self.state.root)
        self.gathers.reduce(self.root, self.state.has_new)

        def reduce(place: int) -> None:
            unit = self._unit(place)
            if unit is not None:
                self._let_go(unit, self.state.blocks)
                self.gathers.reduce(unit, self.state.has_new)

        self.writer.over(self.form, reduce)
        self.gathers.end_backward()
        return self.writer.cut()

    def _take_turn(self) -> None:
        """A unit that was not gathered ahead is gathered now."""
        if not self.gathers.fetched:
            self.gathers.ahead.pop(0)

    def _unit(self, place: int) -> Unit | None:
        return self.units[self.form.pattern[place]] if place in self.form.blocks else None

    def _put(self, place: int, what: int) -> None:
        self.writer.put(SLOTS_BEFORE + SLOTS * self.form.pattern[place] + what)
