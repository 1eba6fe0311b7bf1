"""The scripts of one micro-batch's step without a pipeline: its segments in order, and FSDP2's gathers around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from memory.events import Label, Script
from memory.gathers import Gathers
from memory.scripts import SHARED_FREED, SHARED_MADE, SLOTS_BEFORE, Form, ScriptWriter
from memory.units import Exchange, Micro, Unit

#: a segment's slots
FORWARD, UNCACHE, BACKWARD = range(3)
SLOTS = 3


@dataclass(frozen=True)
class Gathering:
    """How FSDP2 gathers and reduces in one micro-batch."""

    exchange: Exchange
    micro: Micro
    gradient: Label  # what autograd makes
    forward_prefetch: int
    backward_prefetch: int
    reshards: bool  # after forward


@dataclass(frozen=True)
class MicroScripts:
    """To the last block's output; the head and the loss; the backward pass."""

    forward: Script
    loss: Script
    backward: Script


def plain_scripts(form: Form) -> MicroScripts:
    """A micro-batch's scripts where parameters and gradients stay where they are."""
    return _Writer(form).scripts()


def sharded_scripts(form: Form, units: Mapping[int, Unit], root: Unit, gathering: Gathering) -> MicroScripts:
    """The same under FSDP2. `units`: of each kind of block."""
    return _ShardedWriter(form, units, root, gathering).scripts()


class _Writer:
    """Parameters and gradients stay where they are."""

    def __init__(self, form: Form, gathers: Gathers | None = None) -> None:
        self.form = form
        self.writer = ScriptWriter(gathers)

    def scripts(self) -> MicroScripts:
        return MicroScripts(self._forward(), self._loss(), self._backward())

    def _forward(self) -> Script:
        self.writer.put(SHARED_MADE)
        self._begin_forward()
        self.writer.over(replace(self.form, pattern=self.form.pattern[: self.form.loss]), self._run)
        return self.writer.cut()

    def _loss(self) -> Script:
        for place in range(self.form.loss, len(self.form.pattern)):
            self._run(place)
        self._end_forward()
        self.writer.over(self.form, lambda place: self._put(place, UNCACHE))
        return self.writer.cut()

    def _backward(self) -> Script:
        last = len(self.form.pattern) - 1
        self._begin_backward()
        self.writer.over(self._back, lambda place: self._derive(last - place))
        self._end_backward()
        return self.writer.cut()

    @property
    def _back(self) -> Form:
        """The form backwards; its last block is by itself, for it lets go of what all share."""
        back = self.form.back
        return replace(back, blocks=back.blocks[:-1])

    def _run(self, place: int) -> None:
        """A segment's forward pass."""
        self._put(place, FORWARD)

    def _derive(self, place: int) -> None:
        """A segment's backward pass."""
        self._put(place, BACKWARD)
        if place == self.form.blocks.start:  # the last to read what all blocks share
            self.writer.put(SHARED_FREED)

    def _begin_forward(self) -> None:
        """What is done before the first segment."""

    def _end_forward(self) -> None:
        """What is done after the last segment."""

    def _begin_backward(self) -> None:
        """What is done before the last segment's."""

    def _end_backward(self) -> None:
        """What is done after the first segment's."""

    def _put(self, place: int, what: int) -> None:
        self.writer.put(SLOTS_BEFORE + SLOTS * self.form.pattern[place] + what)


class _ShardedWriter(_Writer):
    """FSDP2 gathers each block before it runs, and reduces its gradients when they are there."""

    def __init__(self, form: Form, units: Mapping[int, Unit], root: Unit, gathering: Gathering) -> None:
        self.gathers = Gathers(gathering.exchange, gathering.micro, gathering.gradient)
        super().__init__(form, self.gathers)
        self.units = units
        self.root = root
        self.gathering = gathering

    def _begin_forward(self) -> None:
        self.gathers.ahead = self._blocks
        self.gathers.use_in_forward(self.root)
        self.gathers.fetch_ahead(self.gathering.forward_prefetch, False)

    def _run(self, place: int) -> None:
        unit = self._unit(place)
        if unit is None:
            super()._run(place)
            return
        self.gathers.use_in_forward(unit)
        self.gathers.fetch_ahead(self.gathering.forward_prefetch, False)
        super()._run(place)
        if self.gathering.reshards:
            self.gathers.reshard_after_forward(unit)

    def _end_forward(self) -> None:
        self.gathers.end_forward()

    def _begin_backward(self) -> None:
        self.gathers.ahead = self._blocks[::-1]
        self._fetch_back()

    def _derive(self, place: int) -> None:
        unit = self._unit(place)
        if unit is not None and self.gathering.reshards:
            self.gathers.use_in_backward(unit)
            self._fetch_back()
        super()._derive(place)
        if unit is not None:
            self.gathers.reduce(unit)

    def _end_backward(self) -> None:
        self.gathers.reduce(self.root)
        self.gathers.end_backward()

    def _fetch_back(self) -> None:
        """In backward only what is no longer there is gathered."""
        if self.gathering.reshards:
            self.gathers.fetch_ahead(self.gathering.backward_prefetch, True)

    def _unit(self, place: int) -> Unit | None:
        """A block's unit; what is in none has the root's."""
        return self.units[self.form.pattern[place]] if self.form.is_block(place) else None

    @property
    def _blocks(self) -> list[Unit]:
        return [self.units[self.form.pattern[place]] for place in self.form.blocks if self.form.is_block(place)]
