"""A whole training step on one rank: the segments' walks end to end, with what the strategy adds between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

from memory.events import Event, Label, Phase, gradient_label, phase_of
from memory.gathers import Gathers
from memory.leftovers import leftovers
from memory.units import Unit, exchange_of, micro_of, unit_of
from memory.walk import SegmentWalk, WalkRules, walk_segment
from memory.zero_walk import Acts, acts_of
from suite.case import Case
from suite.operators import Ledger, Placed, Segment
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


#: each distinct segment's walk, by whether gradients are there already to be added to
Walks = dict[bool, dict[Segment, SegmentWalk]]


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
            for phase, times in _counted(self.stretches[done : instant.stretches]):
                _add(sums, phase.change, times)
            done = instant.stretches
            here = dict(sums)
            if instant.events:
                _add(here, self.stretches[done].phase.composition(instant.events))
            yield moment, here


def _counted(stretches: Iterable[Stretch]) -> Iterator[tuple[Phase, int]]:
    """Each phase and how often it comes: a pipeline's micro-batches share theirs."""
    counts: dict[int, tuple[Phase, int]] = {}
    for stretch in stretches:
        key = id(stretch.phase)
        counts[key] = (stretch.phase, counts[key][1] + 1 if key in counts else 1)
    return iter(counts.values())


def _add(sums: dict[Label, int], change: Mapping[Label, int], times: int = 1) -> None:
    for label, nbytes in change.items():
        sums[label] = sums.get(label, 0) + nbytes * times


def walk_step(case: Case, ledger: Ledger, numerics: Numerics, backend: Backend, rank: int = 0) -> StepWalk:
    """One optimizer step. Micro-batches between the second and the last are like the second, so three are walked at
    most."""
    last = case.workload.micro_batches - 1
    stretches: list[Stretch] = []
    walks: Walks = {}
    engine = acts_of(case, ledger, rank, backend)
    for index in sorted({0, min(1, last), last}):
        stretches += _MicroBatch(case, ledger, numerics, backend, index, walks, engine).walk()
    if engine is not None:
        stretches.append(Stretch(engine.update(), Moment.OPTIMIZER_PEAK))
    return StepWalk(tuple(stretches))


def reduced_gradients(numerics: Numerics) -> Label:
    """What autograd makes where a strategy reduces gradients and frees them."""
    return gradient_label(Component.TRANSIENTS, "gradients before they are reduced", numerics.weights.nbytes)


class _MicroBatch:
    def __init__(
        self, case: Case, ledger: Ledger, numerics: Numerics, backend: Backend, index: int, walks: Walks,
        engine: Acts | None,
    ) -> None:  # fmt: skip
        self.case = case
        self.engine = engine
        self.is_first, self.is_last = index == 0, index == case.workload.micro_batches - 1
        self.ledger = ledger
        self.layout = case.layout
        self.is_sharded = case.layout.fsdp > 1
        self.gradient = reduced_gradients(numerics)
        self.exchange = exchange_of(case, numerics, backend)
        self.micro = micro_of(case.layout, index, case.workload.micro_batches)
        self.is_last = index == case.workload.micro_batches - 1
        self.gathers = Gathers(self.exchange, self.micro, self.gradient)
        # autograd adds to the whole gradients that it finds; those that were converted FSDP2 adds to itself
        finds_whole = self.micro.has_whole and not self.exchange.converts
        self.accumulate = finds_whole if self.is_sharded else index > 0 and (engine is None or engine.accumulates)
        if self.accumulate not in walks:
            walks[self.accumulate] = self._segment_walks()
        self.walks = walks[self.accumulate]
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
        if self.is_sharded or not (self.engine is None or self.engine.keeps_whole):
            return WalkRules(kept, self.gradient.component, self.gradient.name, self.accumulate, awaiting)
        return WalkRules(kept, accumulate=self.accumulate, awaiting=awaiting)

    def walk(self) -> list[Stretch]:
        self._put(_shared(self.ledger, 1), FORWARD)
        self._forward()
        for walk in (self.walks[placed.segment] for placed in self.ledger.segments):
            self._put(walk.uncache, LOSS)
        self._backward()
        self._put(leftovers(self.case, self.ledger, self.is_last), BACKWARD, Moment.AFTER_BACKWARD)
        return self.stretches

    def _forward(self) -> None:
        segments = [placed.segment for placed in self.ledger.segments]
        first_loss = next(index for index, segment in enumerate(segments) if segment.name in self.ledger.loss)
        ahead = [unit for unit in map(self.units.get, segments) if unit is not None]
        self._strategy(partial(self.gathers.use_in_forward, self.root), FORWARD)
        self._fetch(ahead, self.layout.forward_prefetch, FORWARD)
        for index, segment in enumerate(segments):
            unit = self.units.get(segment)
            if unit is not None:
                self._strategy(partial(self.gathers.use_in_forward, unit), FORWARD)
                self._fetch(ahead, self.layout.forward_prefetch, FORWARD)
            window = LOSS if index >= first_loss else FORWARD
            level = Moment.AFTER_FORWARD if index == first_loss - 1 else None
            self._put(self._woven(self.walks[segment].forward, self.ledger.segments[index]), window, level)
            if unit is not None and self.layout.reshard_after_forward:
                self._strategy(partial(self.gathers.reshard_after_forward, unit), FORWARD)
        self._strategy(self.gathers.end_forward, LOSS)

    def _backward(self) -> None:
        segments = [placed.segment for placed in reversed(self.ledger.segments)]
        blocks = [place for place, segment in enumerate(segments) if segment in self.units]
        ahead = [unit for unit in map(self.units.get, segments) if unit is not None]
        self._fetch(ahead, self.layout.backward_prefetch, BACKWARD)
        for place, segment in enumerate(segments):
            unit = self.units.get(segment)
            if unit is not None and self.layout.reshard_after_forward:
                self._strategy(partial(self.gathers.use_in_backward, unit), BACKWARD)
                self._fetch(ahead, self.layout.backward_prefetch, BACKWARD)
            self._put(self._woven(self.walks[segment].backward, self.ledger.segments[-1 - place]), BACKWARD)
            if place == max(blocks, default=len(segments) - 1):  # the last to read what all blocks share
                self._put(_shared(self.ledger, -1), BACKWARD)
            if unit is not None:
                self._strategy(partial(self.gathers.reduce, unit), BACKWARD)
        self._strategy(partial(self.gathers.reduce, self.root), BACKWARD)
        self._strategy(self.gathers.end_backward, BACKWARD)
        if self.engine is not None:
            self._put(self.engine.end_backward(self.is_first, self.is_last), BACKWARD)

    def _woven(self, phase: Phase, placed: Placed) -> Phase:
        return phase if self.engine is None else self.engine.weave(phase, placed)

    def _fetch(self, ahead: list[Unit], depth: int, window: Moment) -> None:
        """Gather units ahead until so many wait for their turn; in backward only what is no longer there."""
        is_backward = window is BACKWARD
        if is_backward and not self.layout.reshard_after_forward:
            return
        while ahead and len(self.gathers.fetched) < depth:
            self._strategy(partial(self.gathers.fetch, ahead.pop(0), is_backward), window)

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
        named = {placed.segment for placed in self.ledger.segments if placed.prefix}
        return {segment: unit_of(segment.weights, self.layout.shard_ranks) for segment in named}

    @cached_property
    def root(self) -> Unit:
        """The unit of everything else."""
        rest = [weight for placed in self.ledger.segments if not placed.prefix for weight in placed.segment.weights]
        return unit_of(rest, self.layout.shard_ranks)


def _shared(ledger: Ledger, sign: int) -> Phase:
    """What is made once a micro-batch comes (1) or goes (-1)."""
    source = "made once a micro-batch, read by every block"
    return phase_of(
        Event(sign * array.nbytes, Label(Component.ACTIVATIONS, array.name, array.formula, array.nbytes, source))
        for array in ledger.shared
    )
