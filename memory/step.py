"""A whole training step on one rank: the segments' walks end to end, with what the strategy adds between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from memory.events import Event, Label, Phase, gradient_label, phase_of
from memory.gathers import Gathers, Unit, unit_of
from memory.walk import SegmentWalk, WalkRules, walk_segment
from suite.case import Case
from suite.operators import Ledger, Segment
from suite.record import Component, Moment
from suite.tape import Backend, Numerics

#: which moment is the highest instant of a stretch
FORWARD, LOSS, BACKWARD = Moment.FORWARD_PEAK, Moment.LOSS, Moment.BACKWARD_PEAK


@dataclass(frozen=True)
class Stretch:
    """Events of one phase; `level` names the moment that is read at its end, if one is."""

    phase: Phase
    window: Moment
    level: Moment | None = None


@dataclass(frozen=True)
class Instant:
    """Where a moment is: so many stretches, and then so many events of the next one."""

    stretches: int
    events: int
    nbytes: int  # above what is held between steps


@dataclass(frozen=True)
class StepWalk:
    """The stretches of a step. Bytes are relative to what the rank holds between steps."""

    stretches: tuple[Stretch, ...]

    @cached_property
    def instants(self) -> dict[Moment, Instant]:
        """Each moment's place and height: the highest of its window, or the last such level."""
        found: dict[Moment, Instant] = {}
        height = 0
        for index, stretch in enumerate(self.stretches):
            top = height + stretch.phase.peak
            best = found.get(stretch.window)
            if best is None or top > best.nbytes:
                found[stretch.window] = Instant(index, stretch.phase.peak_at, top)
            height += stretch.phase.net
            if stretch.level is not None:
                found[stretch.level] = Instant(index + 1, 0, height)
        return found

    def compositions(self) -> Iterator[tuple[Moment, Mapping[Label, int]]]:
        """What is alive at each moment, by label."""
        places = sorted(self.instants.items(), key=lambda item: (item[1].stretches, item[1].events))
        sums: dict[Label, int] = {}
        done = 0
        for moment, instant in places:
            for stretch in self.stretches[done : instant.stretches]:
                _add(sums, stretch.phase.change)
            done = instant.stretches
            here = dict(sums)
            if instant.events:
                _add(here, self.stretches[done].phase.composition(instant.events))
            yield moment, here


def _add(sums: dict[Label, int], change: Mapping[Label, int]) -> None:
    for label, nbytes in change.items():
        sums[label] = sums.get(label, 0) + nbytes


def walk_step(case: Case, ledger: Ledger, numerics: Numerics, backend: Backend) -> StepWalk:
    """One optimizer step. Micro-batches after the second are like the second, so two are walked at most."""
    stretches: list[Stretch] = []
    for index in range(min(2, case.workload.micro_batches)):
        stretches += _MicroBatch(case, ledger, numerics, backend, accumulate=index > 0).walk()
    return StepWalk(tuple(stretches))


class _MicroBatch:
    def __init__(self, case: Case, ledger: Ledger, numerics: Numerics, backend: Backend, accumulate: bool) -> None:
        self.case = case
        self.ledger = ledger
        self.numerics = numerics
        self.accumulate = accumulate
        self.is_sharded = case.layout.fsdp > 1
        self.gradient = gradient_label(
            Component.TRANSIENTS, "gradients before they are reduced", numerics.weights.nbytes
        )
        is_mixed = numerics.weights.nbytes < 4
        self.gathers = Gathers(backend, is_mixed, accumulate, self.gradient)
        self.walks = self._segment_walks()
        self.stretches: list[Stretch] = []

    def _segment_walks(self) -> dict[Segment, SegmentWalk]:
        """Each distinct segment once, the last first: a tied weight's gradient waits for its owner."""
        walks: dict[Segment, SegmentWalk] = {}
        awaiting: dict[str, bool] = {}
        for placed in reversed(self.ledger.segments):
            segment = placed.segment
            if segment not in walks:
                walks[segment] = walk_segment(segment, self._rules(segment, awaiting))
                awaiting |= walks[segment].waiting
        return walks

    def _rules(self, segment: Segment, awaiting: Mapping[str, bool]) -> WalkRules:
        kept = Component.LOSS if segment.name in self.ledger.loss else Component.ACTIVATIONS
        if self.is_sharded:
            return WalkRules(kept, self.gradient.component, self.gradient.name, awaiting=awaiting)
        return WalkRules(kept, accumulate=self.accumulate, awaiting=awaiting)

    def walk(self) -> list[Stretch]:
        self._put(_shared(self.ledger, 1), FORWARD)
        self._forward()
        for walk in (self.walks[placed.segment] for placed in self.ledger.segments):
            self._put(walk.uncache, LOSS)
        self._backward()
        self._put(Phase(), BACKWARD, Moment.AFTER_BACKWARD)
        return self.stretches

    def _forward(self) -> None:
        segments = [placed.segment for placed in self.ledger.segments]
        first_loss = next(index for index, segment in enumerate(segments) if segment.name in self.ledger.loss)
        self._strategy(partial(self.gathers.gather, self.root), FORWARD)
        for index, segment in enumerate(segments):
            unit = self.units.get(segment)
            if unit is not None:
                self._strategy(partial(self.gathers.gather, unit), FORWARD)
            window = LOSS if index >= first_loss else FORWARD
            level = Moment.AFTER_FORWARD if index == first_loss - 1 else None
            self._put(self.walks[segment].forward, window, level)
            if unit is not None and self.case.layout.reshard_after_forward:
                self._strategy(partial(self.gathers.reshard, unit), FORWARD)
        self._strategy(self.gathers.end_forward, LOSS)

    def _backward(self) -> None:
        segments = [placed.segment for placed in reversed(self.ledger.segments)]
        blocks = [place for place, segment in enumerate(segments) if segment in self.units]
        ahead = [unit for unit in map(self.units.get, segments) if unit is not None]
        if not self.case.layout.reshard_after_forward:
            ahead = []
        self._fetch_next(ahead)
        for place, segment in enumerate(segments):
            unit = self.units.get(segment)
            if unit is not None:
                self._strategy(self.gathers.use_fetched, BACKWARD)
                self._fetch_next(ahead)
            self._put(self.walks[segment].backward, BACKWARD)
            if place == max(blocks, default=len(segments) - 1):  # the last to read what all blocks share
                self._put(_shared(self.ledger, -1), BACKWARD)
            if unit is not None:
                self._strategy(partial(self.gathers.reduce, unit), BACKWARD)
        self._strategy(partial(self.gathers.reduce, self.root), BACKWARD)
        self._strategy(self.gathers.end_backward, BACKWARD)

    def _fetch_next(self, ahead: list[Unit]) -> None:
        if ahead:
            unit = ahead.pop(0)
            self._strategy(partial(self.gathers.fetch_ahead, unit), BACKWARD)

    def _put(self, phase: Phase, window: Moment, level: Moment | None = None) -> None:
        if phase.events or level is not None:
            self.stretches.append(Stretch(phase, window, level))

    def _strategy(self, write: Callable[[], None], window: Moment) -> None:
        if self.is_sharded:
            write()
            self._put(self.gathers.take(), window)

    @cached_property
    def units(self) -> dict[Segment, Unit]:
        """The units that are gathered one at a time: the segments that are placed under a name of their own."""
        ranks, nbytes = self.case.layout.fsdp, self.numerics.weights.nbytes
        named = {placed.segment for placed in self.ledger.segments if placed.prefix}
        return {segment: unit_of(segment.weights, ranks, nbytes) for segment in named}

    @cached_property
    def root(self) -> Unit:
        """The unit of everything else."""
        rest = [weight for placed in self.ledger.segments if not placed.prefix for weight in placed.segment.weights]
        return unit_of(rest, self.case.layout.fsdp, self.numerics.weights.nbytes)


def _shared(ledger: Ledger, sign: int) -> Phase:
    """What is made once a micro-batch comes (1) or goes (-1)."""
    source = "made once a micro-batch, read by every block"
    return phase_of(
        Event(sign * array.nbytes, Label(Component.ACTIVATIONS, array.name, array.formula, array.nbytes, source))
        for array in ledger.shared
    )
