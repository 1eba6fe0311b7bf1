"""The scripts of one micro-batch's step without a pipeline: its segments in order, and FSDP2's gathers around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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


def micro_scripts(form: Form, units: Mapping[int, Unit], root: Unit, gathering: Gathering | None) -> MicroScripts:
    """A micro-batch's scripts. `units`: of each kind of block; they and `root` matter
    where parameters are gathered."""
    if gathering is None:
        return _Writer(form).scripts()
    return _ShardedWriter(form, units, root, gathering).scripts()


class _Writer:
    """Parameters and gradients stay where they are."""

    def __init__(self, form: Form, gathers: Gathers | None = None) -> None:
        self.form = form
        self.writer = ScriptWriter(gathers)

    def scripts(self) -> MicroScripts:
        return MicroScripts(self._forward(), self._loss(), self._backward())

    def _forward(self) -> Script:
        blocks = self.form.blocks
        self.writer.put(SHARED_MADE)
        self._begin_forward()
        self._put(range(blocks.start), FORWARD)
        self.writer.over(self._kinds(blocks), lambda index: self._block_forward(blocks[index]))
        self._put(range(blocks.stop, self.form.loss), FORWARD)
        return self.writer.cut()

    def _loss(self) -> Script:
        blocks, end = self.form.blocks, len(self.form.pattern)
        self._put(range(self.form.loss, end), FORWARD)
        self._end_forward()
        self._put(range(blocks.start), UNCACHE)
        self.writer.over(self._kinds(blocks), lambda index: self._put(blocks[index : index + 1], UNCACHE))
        self._put(range(blocks.stop, end), UNCACHE)
        return self.writer.cut()

    def _backward(self) -> Script:
        blocks, end = self.form.blocks, len(self.form.pattern)
        self._begin_backward()
        self._put(range(end - 1, blocks.stop - 1, -1), BACKWARD)
        back = blocks[:0:-1]
        self.writer.over(self._kinds(back), lambda index: self._block_backward(back[index]))
        self._block_backward(blocks.start)
        self._put(range(blocks.start - 1, -1, -1), BACKWARD)
        self._end_backward()
        return self.writer.cut()

    def _block_forward(self, place: int) -> None:
        self._put(range(place, place + 1), FORWARD)

    def _block_backward(self, place: int) -> None:
        self._put(range(place, place + 1), BACKWARD)
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

    def _kinds(self, places: range) -> list[int]:
        return [self.form.pattern[place] for place in places]

    def _put(self, places: range, what: int) -> None:
        for place in places:
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
        self.gathers.ahead = [self._unit(place) for place in self.form.blocks]
        self.gathers.use_in_forward(self.root)
        self.gathers.fetch_ahead(self.gathering.forward_prefetch, False)

    def _block_forward(self, place: int) -> None:
        unit = self._unit(place)
        self.gathers.use_in_forward(unit)
        self.gathers.fetch_ahead(self.gathering.forward_prefetch, False)
        super()._block_forward(place)
        if self.gathering.reshards:
            self.gathers.reshard_after_forward(unit)

    def _end_forward(self) -> None:
        self.gathers.end_forward()

    def _begin_backward(self) -> None:
        self.gathers.ahead = [self._unit(place) for place in reversed(self.form.blocks)]
        self._fetch_back()

    def _block_backward(self, place: int) -> None:
        unit = self._unit(place)
        if self.gathering.reshards:
            self.gathers.use_in_backward(unit)
            self._fetch_back()
        super()._block_backward(place)
        self.gathers.reduce(unit)

    def _end_backward(self) -> None:
        self.gathers.reduce(self.root)
        self.gathers.end_backward()

    def _fetch_back(self) -> None:
        """In backward only what is no longer there is gathered."""
        if self.gathering.reshards:
            self.gathers.fetch_ahead(self.gathering.backward_prefetch, True)

    def _unit(self, place: int) -> Unit:
        return self.units[self.form.pattern[place]]
